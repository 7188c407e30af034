import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { test } from 'node:test';
import { CommandError } from '../errors.ts';
import { chooseLayout, makePlan, mergeLayouts, type UpOptions } from './plan.ts';
import { hostPort } from './ports.ts';

const OPTIONS: UpOptions = {
  dir: '/cluster',
  nodes: 2,
  agent: true,
  host: '127.0.0.1',
  advertiseHost: '192.0.2.7',
  restPort: 0,
  grpcPort: 0,
};

test('every port is given once', async () => {
  const { restPort, grpcPort, nodes, agent } = await chooseLayout({ ...OPTIONS, nodes: 5 }, null);
  const ports = [restPort, grpcPort, agent!.metricsPort, ...nodes.flatMap((n) => [n.nbdPort, n.metricsPort])];
  assert.equal(new Set(ports).size, 13);
  assert.deepEqual(
    nodes.map(({ id }) => id),
    ['node-1', 'node-2', 'node-3', 'node-4', 'node-5'],
  );
});

test('ids and ports of the last run are kept, and one that is taken now is replaced', async () => {
  const saved = await chooseLayout(OPTIONS, null);
  const again = await chooseLayout({ ...OPTIONS, restPort: null, grpcPort: null }, saved);
  assert.deepEqual(again, saved);
  const squatter = createServer().listen(saved.nodes[1]!.nbdPort, '127.0.0.1');
  await once(squatter, 'listening');
  const moved = await chooseLayout(OPTIONS, saved);
  squatter.close();
  assert.deepEqual(moved.nodes[0], saved.nodes[0]);
  assert.equal(moved.nodes[1]!.id, saved.nodes[1]!.id);
  assert.notEqual(moved.nodes[1]!.nbdPort, saved.nodes[1]!.nbdPort);
});

test('a port that was asked for and is taken is an error that names the option', async () => {
  const squatter = createServer().listen(0, '127.0.0.1');
  await once(squatter, 'listening');
  const restPort = (squatter.address() as AddressInfo).port;
  await assert.rejects(
    chooseLayout({ ...OPTIONS, restPort }, null),
    (error) =>
      error instanceof CommandError && error.code === 'BW_CONFLICT' && /--rest-port/.test(error.message),
  );
  squatter.close();
});

test('an address that is not this machine’s is refused', async () => {
  await assert.rejects(
    chooseLayout({ ...OPTIONS, host: '192.0.2.1' }, null),
    /cannot listen on 192\.0\.2\.1/,
  );
});

test('a smaller run forgets neither the other nodes nor the agent', async () => {
  const saved = await chooseLayout(OPTIONS, null);
  const smaller = await chooseLayout({ ...OPTIONS, nodes: 1, agent: false }, saved);
  const merged = mergeLayouts(saved, smaller);
  assert.deepEqual(merged.nodes, saved.nodes);
  assert.deepEqual(merged.agent, saved.agent);
});

test('nodes listen on the host and advertise the other address; processes here use the loopback', () => {
  const layout = {
    restPort: 1,
    grpcPort: 2,
    nodes: [{ id: 'node-1', nbdPort: 3, metricsPort: 4 }],
    agent: null,
  };
  const plan = makePlan({ ...OPTIONS, host: '0.0.0.0' }, layout);
  assert.equal(plan.rest, 'http://127.0.0.1:1');
  assert.equal(plan.nodes[0]!.nbd, '192.0.2.7:3');
  const line = plan.nodes[0]!.command.join(' ');
  assert.match(line, /--data-dir \/cluster\/node-1 --json --host 0\.0\.0\.0/);
  assert.match(line, /--advertise 192\.0\.2\.7:3 --control 127\.0\.0\.1:2 --peer-address 127\.0\.0\.1:3/);
  assert.equal(hostPort('::1', 5), '[::1]:5');
});
