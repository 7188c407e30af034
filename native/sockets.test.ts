import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { test } from 'node:test';
import { native } from './native.ts';
import { encodeSockaddr, listenTcp, parseHostPort } from './sockets.ts';

test('host:port is split, with brackets for IPv6', () => {
  assert.deepEqual(parseHostPort('node-1.example:10809'), { host: 'node-1.example', port: 10809 });
  assert.deepEqual(parseHostPort('[::1]:1'), { host: '::1', port: 1 });
  for (const bad of ['', 'host', ':1', 'host:', '::1:5', 'host:99999', 'host:1x']) {
    assert.equal(parseHostPort(bad), null, bad);
  }
});

test('socket addresses have the layout of the kernel', () => {
  assert.deepEqual(
    [...encodeSockaddr({ address: '10.1.2.3', port: 0x1234 }).bytes],
    [2, 0, 0x12, 0x34, 10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0],
  );
  const v6 = (address: string): string =>
    Buffer.from(encodeSockaddr({ address, port: 80 }).bytes.subarray(8, 24)).toString('hex');
  assert.equal(v6('::1'), '00000000000000000000000000000001');
  assert.equal(v6('2001:db8::5:0:7'), '20010db8000000000000000500000007');
  assert.equal(v6('::ffff:10.1.2.3'), '00000000000000000000ffff0a010203');
  assert.equal(v6('::'), '0'.repeat(32));
  assert.throws(() => encodeSockaddr({ address: 'localhost', port: 1 }), RangeError);
});

test('a listening socket takes a free port, on IPv4 and IPv6, and a taken one is refused', async () => {
  for (const address of ['127.0.0.1', '::1']) {
    const { fd, port } = listenTcp({ address, port: 0 }, 8);
    assert.throws(() => listenTcp({ address, port }, 8), { name: 'KernelError', code: 'EADDRINUSE' });
    const client = connect(port, address);
    await new Promise<void>((resolve, reject) => client.once('connect', resolve).once('error', reject));
    client.destroy();
    native.close(fd);
  }
});
