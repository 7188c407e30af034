/**
 * `blockwire control|node|agent`, `blockwire agent handover|orphans` and `blockwire node check`: becomes that process, in
 * the foreground. Imports little, so that the process starts without the time that the rest of the command line takes.
 */
import { existsSync } from 'node:fs';
import { CommandError } from '../errors.ts';
import { isRole, type Program, programPath } from '../processes.ts';

/**
 * The role and its arguments, when the command line asks for a process. A first argument `list`, `drain`, `--help` or
 * `-h` does not. Everything else belongs to the process and is not looked at here.
 */
export function processRequest(argv: readonly string[]): { role: Program; args: readonly string[] } | null {
  const [role, ...args] = argv;
  if (!isRole(role)) return null;
  if (role === 'agent' && args[0] === 'handover') return { role, args: ['--handover', ...args.slice(1)] };
  if (role === 'agent' && args[0] === 'orphans') return { role: 'orphans', args: args.slice(1) };
  if (role === 'node' && args[0] === 'check') return { role: 'nodeCheck', args: args.slice(1) };
  return ['list', 'drain', '--help', '-h'].includes(args[0] ?? '') ? null : { role, args };
}

/**
 * Replaces this process by the role's program: same pid, streams and signals, so that whoever started the
 * command supervises the program itself. Returns only by throwing.
 */
export async function becomeProcess(role: Program, args: readonly string[]): Promise<never> {
  const path = programPath(role);
  if (!existsSync(path))
    throw new CommandError('BW_INTERNAL', `${path} is missing; is the checkout complete?`);
  const { execve } = process;
  if (execve === undefined)
    throw new CommandError('BW_UNSUPPORTED_HOST', 'this platform cannot replace a process');
  if (role === 'agent') await becomeIoFlusher();
  execve(process.execPath, [process.execPath, ...process.execArgv, path, ...args], process.env);
  throw new CommandError('BW_INTERNAL', `cannot start ${path}`);
}

/**
 * Outlives the execve, and there it holds for every thread from the first on; the agent itself could have it only for
 * those that it makes later. Without the addon or without root the agent says what is missing.
 */
async function becomeIoFlusher(): Promise<void> {
  try {
    const { native } = await import('@blockwire/native/native.ts');
    native.becomeIoFlusher();
  } catch {
    // See above.
  }
}
