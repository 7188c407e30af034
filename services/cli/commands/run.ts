/**
 * `blockwire control|node|agent`, and `blockwire node check`: becomes that process, in the foreground. Imports little, so that the process
 * starts without the time that the rest of the command line takes to load.
 */
import { existsSync } from 'node:fs';
import { CommandError } from '../errors.ts';
import { isRole, type Program, programPath } from '../processes.ts';

/**
 * The role and its arguments, when the command line asks for a process. A first argument `list`, `--help` or
 * `-h` does not. Everything else belongs to the process and is not looked at here.
 */
export function processRequest(argv: readonly string[]): { role: Program; args: readonly string[] } | null {
  const [role, ...args] = argv;
  if (!isRole(role)) return null;
  if (role === 'node' && args[0] === 'check') return { role: 'nodeCheck', args: args.slice(1) };
  return ['list', '--help', '-h'].includes(args[0] ?? '') ? null : { role, args };
}

/**
 * Replaces this process by the role's program: same pid, streams and signals, so that whoever started the
 * command supervises the program itself. Returns only by throwing.
 */
export function becomeProcess(role: Program, args: readonly string[]): never {
  const path = programPath(role);
  if (!existsSync(path))
    throw new CommandError('BW_INTERNAL', `${path} is missing; is the checkout complete?`);
  const { execve } = process;
  if (execve === undefined)
    throw new CommandError('BW_UNSUPPORTED_HOST', 'this platform cannot replace a process');
  execve(process.execPath, [process.execPath, ...process.execArgv, path, ...args], process.env);
  throw new CommandError('BW_INTERNAL', `cannot start ${path}`);
}
