/** After a run with --keep: says how to reach the cluster, and waits; on a terminal, Enter opens a shell in the machine. */
import type { Console } from './console.ts';
import type { Stage } from './stage.ts';

/** Resolves when `asked` does. */
export async function keepRunning(
  stage: Stage,
  console: Console,
  { device, asked }: { device: string; asked: Promise<unknown> },
): Promise<void> {
  const rest = stage.cluster.rest.url;
  const inTerminal = process.stdin.isTTY && stage.machine.kind === 'vm';
  console.text(`
The cluster keeps running until Ctrl-C; ${device} is attached${stage.machine.kind === 'vm' ? ' in the VM' : ''}.
  REST               ${rest}/v1/volumes   (described at ${rest}/openapi.json)
  in another shell   npx blockwire --rest ${rest} volume list
  logs               ${stage.cluster.dir}/log`);
  if (stage.machine.kind === 'vm') {
    console.text(
      `  in the VM          ${inTerminal ? 'press Enter for a shell' : 'run this on a terminal, then Enter opens a shell'}`,
    );
  }
  if (inTerminal) {
    process.stdin.on('data', (typed: Buffer) => {
      if (!process.stdin.isRaw && typed.includes('\n')) void openShell(stage, console);
    });
  }
  await asked;
  if (inTerminal) process.stdin.setRawMode(false);
}

async function openShell({ machine }: Stage, console: Console): Promise<void> {
  process.stdin.setRawMode(true);
  // script gives the shell inside a terminal of its own.
  const shell = machine.start('TERM=vt100 script -qfc "bash -i" /dev/null', {
    onOutput: (chunk) => process.stdout.write(chunk),
  });
  const pass = (typed: Buffer): void => shell.write(typed);
  process.stdin.on('data', pass);
  await shell.done.catch(() => null);
  process.stdin.off('data', pass);
  process.stdin.setRawMode(false);
  console.text('\nThe shell has ended; Enter opens another, Ctrl-C ends the cluster.');
}
