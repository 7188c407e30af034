/** `control`, `node` and `agent` in the help, and the lists beside the last two. run.ts runs the processes. */
import type { Command } from 'commander';
import { usageError } from '../errors.ts';
import type { Role } from '../processes.ts';
import type { Context } from './context.ts';
import { addAgentList, addNodeList } from './lists.ts';

/** Puts the three processes into the help, and their lists beside them. */
export function addProcessCommands(program: Command, context: Context): void {
  const describe = (role: Role, description: string): Command =>
    program
      .command(role)
      .description(description)
      .argument('[options...]', `the options of the process; "blockwire ${role} --help" shows them`)
      .allowUnknownOption()
      .action(() => {
        // Reached only behind another option: main.ts takes the plain form before any parsing.
        throw usageError(`to run the process, write "blockwire ${role} ..." with no option before "${role}"`);
      });
  describe('control', 'run a control plane in the foreground');
  addNodeList(describe('node', 'run a storage node in the foreground'), context);
  addAgentList(describe('agent', 'run the agent of this host in the foreground'), context);
}
