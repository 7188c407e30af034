/** `blockwire control|node|agent`: becomes that process, in the foreground. */
import { existsSync } from 'node:fs';
import type { Command } from 'commander';
import { CommandError, usageError } from '../errors.ts';
import { isRole, programPath, type Role } from '../processes.ts';
import type { Context } from './context.ts';
import { addAgentList, addNodeList } from './lists.ts';

/**
 * The role and its arguments, when the command line asks for a process. `node list` and `agent list` do not:
 * a first argument `list` is a subcommand. Everything else belongs to the process and is not looked at here.
 */
export function processRequest(argv: readonly string[]): { role: Role; args: readonly string[] } | null {
  const [role, ...args] = argv;
  if (!isRole(role)) return null;
  return args[0] === 'list' && role !== 'control' ? null : { role, args };
}

/**
 * Replaces this process by the role's program: same pid, streams and signals, so that whoever started the
 * command supervises the program itself. Returns only by throwing.
 */
export function becomeProcess(role: Role, args: readonly string[]): never {
  const path = programPath(role);
  if (!existsSync(path))
    throw new CommandError('BW_INTERNAL', `${path} is missing; is the checkout complete?`);
  const { execve } = process;
  if (execve === undefined)
    throw new CommandError('BW_UNSUPPORTED_HOST', 'this platform cannot replace a process');
  execve(process.execPath, [process.execPath, ...process.execArgv, path, ...args], process.env);
  throw new CommandError('BW_INTERNAL', `cannot start ${path}`);
}

/** Puts the three processes into the help, and their lists beside them. */
export function addProcessCommands(program: Command, context: Context): void {
  const describe = (role: Role, description: string): Command =>
    program
      .command(role)
      .description(description)
      .argument('[options...]', `the options of the process; "blockwire ${role} --help" shows them`)
      .allowUnknownOption()
      .action(() => {
        // Reached only behind another option: processRequest takes the plain form before any parsing.
        throw usageError(`to run the process, write "blockwire ${role} ..." with no option before "${role}"`);
      });
  describe('control', 'run a control plane in the foreground');
  addNodeList(describe('node', 'run a storage node in the foreground'), context);
  addAgentList(describe('agent', 'run the agent of this host in the foreground'), context);
}
