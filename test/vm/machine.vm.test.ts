/** Boots two real machines, one per network, and looks at what a test relies on. Needs root; about a minute. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { createServer } from 'node:http';
import * as os from 'node:os';
import * as path from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { sweep } from './parts.ts';
import { Vm } from './vm.ts';

const isAlive = (pid: number) => fs.existsSync(`/proc/${pid}`);

describe('the VM on slirp', () => {
  let vm: Vm;
  before(async () => {
    vm = await Vm.bootGuest();
  });
  after(() => vm?.close());

  it('returns output in order and the exit code', async () => {
    const result = await vm.run('echo one; echo two >&2; echo three > /dev/stdout; exit 7');
    assert.deepEqual(result, { exitCode: 7, output: 'one\ntwo\nthree\n', timedOut: false });
  });

  it('says 128 + signal for a command that a signal ended', async () => {
    assert.equal((await vm.run('kill -TERM $$')).exitCode, 143);
  });

  it('says 127 for a directory that does not exist', async () => {
    const { exitCode, output } = await vm.run('true', { cwd: '/nonexistent' });
    assert.equal(exitCode, 127);
    assert.match(output, /ENOENT/);
  });

  it('check throws with the output when the command fails', async () => {
    await assert.rejects(vm.check('echo broken; false'), { code: 'BW_IO', message: /broken/ });
    assert.equal(await vm.check('echo fine'), 'fine\n');
  });

  it('kills a whole command at its time limit', async () => {
    const { timedOut, output } = await vm.run('sleep 600 & echo $!; sleep 600', { timeoutMs: 2000 });
    assert.equal(timedOut, true);
    await vm.check(untilGone(Number(output)));
  });

  it('lives on while the kernel patches its own text under load', async () => {
    const events = '/sys/kernel/tracing/events';
    const toggle = `for e in sched syscalls irq timer kmem; do echo 1 > ${events}/$e/enable; echo 0 > ${events}/$e/enable; done`;
    const load = 'while :; do cat /proc/self/stat; done > /dev/null';
    await vm.check(`(${load}) & (${load}) & for i in {1..60}; do ${toggle}; done; kill %1 %2`);
    assert.equal((await vm.check('dmesg | grep -c Oops || true')).trim(), '0');
  });

  it('runs commands at the same time', async () => {
    const fifo = '/tmp/rendezvous';
    await vm.check(`mkfifo ${fifo}`);
    // Each end of the pipe blocks until the other is open: one after the other would never end.
    const limit = { timeoutMs: 60_000 };
    const both = [vm.run(`cat ${fifo}`, limit), vm.run(`echo met > ${fifo}`, limit)];
    assert.deepEqual(await Promise.all(both), [
      { exitCode: 0, output: 'met\n', timedOut: false },
      { exitCode: 0, output: '', timedOut: false },
    ]);
  });

  it('passes large output on whole', async () => {
    let receivedBytes = 0;
    const { output, exitCode } = await vm.run('seq 1 400000', {
      onOutput: (chunk) => {
        receivedBytes += chunk.length;
      },
    });
    assert.equal(exitCode, 0);
    assert.equal(receivedBytes, output.length);
    assert.equal(output, `${Array.from({ length: 400_000 }, (_, i) => i + 1).join('\n')}\n`);
  });

  it('starts a long-running command that is fed, watched and stopped', async () => {
    const started = vm.start('while read -r line; do echo "got $line"; done; echo done; sleep 600');
    started.write('one\n');
    assert.equal((await started.waitFor(/got (\w+)/))[1], 'one');
    started.end();
    await started.waitFor(/done/);
    started.kill();
    assert.equal((await started.done).exitCode, 143);
    await assert.rejects(started.waitFor(/never/), { code: 'BW_IO' });
  });

  it('lets a daemon outlive the command that started it', async () => {
    const pid = (await vm.check('{ while sleep 0.2; do echo tick; done; } & echo $!')).split('\n')[0];
    await vm.check(`sleep 1; kill -0 ${pid}; kill ${pid}`);
    // Process 1 reaps orphans: a dead daemon must not look alive.
    await vm.check(untilGone(Number(pid)));
  });

  it('has the newest kernel with ublk and the modules that the tests use', async () => {
    assert.match(vm.kernelRelease, /^\d+\.\d+.*-cloud-amd64$/);
    await vm.check('test -c /dev/ublk-control && test -b /dev/nbd0');
    await vm.check('modprobe -a loop null_blk nvme_tcp nvmet_tcp', { timeoutMs: 60_000 });
    await vm.check('test -d /sys/module/nvmet_tcp');
  });

  it('has the project and its node, and keeps its writes to itself', async () => {
    const written = path.join(import.meta.dirname, 'written-inside');
    await vm.check(`test -f package.json && node --version && touch ${written} && test -f ${written}`);
    assert.equal(fs.existsSync(written), false);
  });

  it('shares one directory both ways', async () => {
    fs.writeFileSync(path.join(vm.sharedHostPath, 'in'), 'from outside');
    assert.equal(await vm.check(`cat ${vm.sharedPath}/in`), 'from outside');
    await vm.check(`printf 'from inside' > ${vm.sharedPath}/out`);
    assert.equal(fs.readFileSync(path.join(vm.sharedHostPath, 'out'), 'utf8'), 'from inside');
  });

  it("reaches a server on the host's loopback", async () => {
    const server = createServer((_, response) => response.end('hello from the host'));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const address = server.address();
    assert.ok(typeof address === 'object' && address);
    const output = await vm.check(httpGet(`http://${vm.hostAddress}:${address.port}/`));
    assert.match(output, /hello from the host/);
    server.close();
  });

  it('runs the same scripts as a host does, inside', async () => {
    const { output, exitCode } = await vm.run("node test/vm/cli.ts --quiet 'echo on $BLOCKWIRE_VM; exit 5'", {
      timeoutMs: 120_000,
    });
    assert.deepEqual({ output, exitCode }, { output: 'on host\n', exitCode: 5 });
  });

  it('leaves no process and no file, and fails what was under way', async () => {
    const underWay = vm.run('sleep 600');
    assert.equal(vm.pids.length, 3);
    assert.ok(vm.pids.every(isAlive));
    await vm.close();
    await assert.rejects(underWay, { code: 'BW_SHUTTING_DOWN' });
    await assert.rejects(vm.run('true'), BlockwireError);
    assert.deepEqual(vm.pids.filter(isAlive), []);
    assert.equal(fs.existsSync(vm.sharedHostPath), false);
  });
});

describe('the VM on tap', () => {
  it('has offloads, reaches servers in its namespace, and goes with the process that booted it', async () => {
    // In a process of its own, so that it can be killed the hard way.
    const script = `
      import { Vm } from ${JSON.stringify(path.join(import.meta.dirname, 'vm.ts'))};
      const vm = await Vm.bootGuest({ network: 'tap', memoryMiB: 1024 });
      const { pids, hostNetns, hostAddress } = vm;
      const features = (await vm.check('cat /sys/class/net/eth0/device/features')).trim();
      console.log(JSON.stringify({ pids, hostNetns, hostAddress, features }));
      process.stdin.on('data', async (command) => console.log(JSON.stringify(await vm.run(String(command)))));
    `;
    const child = spawn(process.execPath, ['--no-warnings', '--input-type=module-typescript', '-e', script], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    let server: ReturnType<typeof spawn> | undefined;
    try {
      const lines = linesOf(child.stdout);
      const { pids, hostNetns, hostAddress, features } = JSON.parse(await lines()) as {
        pids: number[];
        hostNetns: string;
        hostAddress: string;
        features: string;
      };
      // Virtio specification 5.1.3: 0 is checksum, 11 is TCP segmentation, both on the way to the host.
      assert.equal(`${features[0]}${features[11]}`, '11');

      const serve = `require('net').createServer((s) => s.end('x'.repeat(1e6))).listen(7000, () => console.log('up'))`;
      server = spawn('ip', ['netns', 'exec', hostNetns, process.execPath, '-e', serve], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      await once(server.stdout!, 'data');
      child.stdin.write(`timeout 60 bash -c 'cat < /dev/tcp/${hostAddress}/7000' | wc -c`);
      assert.deepEqual(JSON.parse(await lines()), { exitCode: 0, output: '1000000\n', timedOut: false });

      child.kill('SIGKILL');
      await once(child, 'exit');
      for (let i = 0; i < 100 && pids.some(isAlive); i++) await delay(100);
      assert.deepEqual(pids.filter(isAlive), []);

      // What a killed process cannot remove, the next boot does.
      assert.equal(fs.existsSync(`/run/netns/${hostNetns}`), true);
      server.kill('SIGKILL');
      await sweep();
      assert.equal(fs.existsSync(`/run/netns/${hostNetns}`), false);
      assert.equal(fs.existsSync(path.join(os.tmpdir(), hostNetns)), false);
    } finally {
      child.kill('SIGKILL');
      server?.kill('SIGKILL');
    }
  });
});

/** Succeeds once the process inside is gone, zombies included. */
function untilGone(pid: number): string {
  return `for i in $(seq 50); do kill -0 ${pid} 2>/dev/null || exit 0; sleep 0.1; done; exit 1`;
}

function httpGet(url: string): string {
  return `node -e "fetch('${url}').then((r) => r.text()).then(console.log)"`;
}

/** Reads a stream line by line. */
function linesOf(stream: NodeJS.ReadableStream): () => Promise<string> {
  const iterator = (async function* () {
    let text = '';
    for await (const chunk of stream) {
      text += chunk;
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        yield text.slice(0, end);
        text = text.slice(end + 1);
      }
    }
  })();
  return async () => {
    const { value, done } = await iterator.next();
    if (done) throw new Error('The process ended early');
    return value;
  };
}
