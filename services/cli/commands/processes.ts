/** `control`, `node` and `agent` in the help, and the lists beside the last two. run.ts runs the processes. */
import type { Command } from 'commander';
import { usageError } from '../errors.ts';
import type { Role } from '../processes.ts';
import type { Context } from './context.ts';
import { addNodeDrain } from './drain.ts';
import { addAgentList, addNodeList } from './lists.ts';

const PROCESS_OPTIONS: Readonly<Record<Role, string>> = {
  control: `  --data-dir DIR     metadata
  --host ADDRESS     address to listen on
  --rest-port PORT   REST (default 7400)
  --grpc-port PORT   gRPC for nodes and agents (default 7401)
  --rebuilds-per-node N    rebuilds that a node takes part in at once (default 2)
  --rebuild-rate SIZE      bytes a second of one rebuild, such as 200MiB (default), 0: no bound
  --replace-after TIME     a node away for so long is not waited for, such as 10m (default), 0: it always is
  --scrub-interval TIME    from one scrub of a volume to the next, such as 7d (default), 0: only when asked for
  --scrub-rate SIZE        bytes a second of one scrub, such as 50MiB (default), 0: no bound
  --json             one JSON line on stdout when ready`,
  node: `  --id ID                  name of the node, such as node-1
  --data-dir DIR           replicas
  --control HOST:PORT      the control plane's gRPC address
  --host ADDRESS           address to listen on
  --nbd-port PORT          NBD (default 10809)
  --advertise HOST:PORT    NBD address for agents on other machines
  --metrics-port PORT      /metrics and /healthz (default 7411)
  --zone ZONE              failure domain for placement
  --capacity-bytes BYTES   what replicas may claim
  --workers COUNT          data workers
  --json                   one JSON line on stdout when ready`,
  agent: `  --id ID               name of the agent
  --control HOST:PORT   the control plane's gRPC address
  --datapath MODE       auto, fused, splice or copy
  --queues N, --queue-depth N, --block-size BYTES, --io-timeout MS   for attachments that do not say
  --run-dir DIR         lock and socket (default /run/blockwire)
  --metrics-host ADDRESS, --metrics-port PORT   /metrics and /healthz (default 127.0.0.1, 7421)
  --json                one JSON line on stdout when ready`,
};

/** Puts the three processes into the help, and their lists beside them. */
export function addProcessCommands(program: Command, context: Context): void {
  const describe = (role: Role, description: string): Command =>
    program
      .command(role)
      .description(description)
      .argument('[options...]', 'the options of the process')
      .allowUnknownOption()
      .addHelpText('after', `\nOptions of the process:\n${PROCESS_OPTIONS[role]}`)
      .action(() => {
        // Reached only behind another option: main.ts takes the plain form before any parsing.
        throw usageError(`to run the process, write "blockwire ${role} ..." with no option before "${role}"`);
      });
  describe('control', 'run a control plane in the foreground');
  const node = describe('node', 'run a storage node in the foreground');
  addNodeList(node, context);
  addNodeDrain(node, context);
  node
    .command('check')
    .description('check the replicas in a data directory, and repair what the data can tell')
    .argument('<dir>', 'the data directory of a node that does not run')
    .option('--repair', 'recompute checksums of dirty regions, rebuild missing checksum and region files')
    .action(() => {
      // As above: main.ts takes the plain form before any parsing.
      throw usageError('write "blockwire node check DIR ..." with no option before "node"');
    });
  addAgentList(describe('agent', 'run the agent of this host in the foreground'), context);
}
