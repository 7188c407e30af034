import assert from 'node:assert/strict';
import { EventEmitter, once } from 'node:events';
import { test } from 'node:test';
import { type CommandStream, ControlSession } from './control-session.ts';
import { createLogger } from './log.ts';

class FakeStream extends EventEmitter implements CommandStream<string> {
  cancelled = false;

  cancel(): void {
    this.cancelled = true;
  }
}

/** A control plane that counts what it is asked; registration fails while `down`. */
class FakeControl extends EventEmitter {
  down = false;
  registrations = 0;
  heartbeats = 0;
  readonly streams: FakeStream[] = [];
  readonly commands: string[] = [];

  session(onCommand: (command: string) => Promise<void> = async () => {}): ControlSession<string> {
    const log = createLogger('test');
    log.level = 'silent';
    return new ControlSession<string>({
      log,
      register: async () => {
        if (this.down) throw new Error('unreachable');
        this.registrations++;
        return 5;
      },
      heartbeat: async () => {
        if (this.down) throw new Error('unreachable');
        this.heartbeats++;
        this.emit('heartbeat');
      },
      watch: () => {
        const stream = new FakeStream();
        this.streams.push(stream);
        queueMicrotask(() => this.emit('watch'));
        return stream;
      },
      onCommand: (command) => {
        this.commands.push(command);
        return onCommand(command);
      },
    });
  }
}

test('it registers, beats, and hands commands on in order', async () => {
  const control = new FakeControl();
  const session = control.session();
  const watching = once(control, 'watch');
  await session.start();
  await watching;
  assert.equal(session.connected, true);
  for (const command of ['a', 'b', 'c']) control.streams[0]!.emit('data', command);
  await once(control, 'heartbeat');
  assert.deepEqual(control.commands, ['a', 'b', 'c']);
  await session.stop();
  assert.equal(control.streams[0]!.cancelled, true);
});

test('it registers again when the watch ends or breaks, and when a heartbeat fails', async () => {
  const control = new FakeControl();
  const session = control.session();
  let watching = once(control, 'watch');
  await session.start();
  await watching;
  watching = once(control, 'watch');
  control.streams[0]!.emit('end');
  await watching;
  watching = once(control, 'watch');
  control.streams[1]!.emit('error', new Error('cut'));
  await watching;
  assert.equal(control.registrations, 3);
  control.down = true;
  watching = once(control, 'watch');
  setTimeout(() => {
    control.down = false;
  }, 50);
  await watching;
  assert.equal(control.registrations, 4);
  await session.stop();
});

test('stop waits for the commands under way', async () => {
  const control = new FakeControl();
  const gate = Promise.withResolvers<void>();
  let finished = false;
  const session = control.session(async () => {
    await gate.promise;
    finished = true;
  });
  const watching = once(control, 'watch');
  await session.start();
  await watching;
  control.streams[0]!.emit('data', 'slow');
  const stopped = session.stop();
  setTimeout(gate.resolve, 10);
  await stopped;
  assert.equal(finished, true);
});

test('stop ends a session that never reached the control plane', async () => {
  const control = new FakeControl();
  control.down = true;
  const session = control.session();
  const started = session.start();
  await session.stop();
  await started;
  assert.equal(session.connected, false);
});
