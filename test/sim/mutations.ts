/** Ways to break the protocol, each of which the simulator has to notice: its own test. */

export const MUTATIONS = {
  'skip-intent': 'a node writes without intents',
  'write-before-intent': 'a node writes while the intent is still on its way to the disk',
  'clear-without-checkpoint': 'a node clears intents at every flush',
  'checkpoint-without-mark': 'a CHECKPOINT covers everything that has arrived',
  'checkpoint-early': 'the agent sends CHECKPOINT without waiting for its fence',
  'checkpoint-at-first-fence': 'a CHECKPOINT follows when the fence of one queue has passed',
  'no-tag-on-install': 'a node does not tag its intents with an installed epoch',
  'ignore-fresh': 'a rebuild writes over what the writer has written since',
  'skip-barrier': 'a rebuild copies before earlier writes are done',
  'barrier-at-first-queue': 'a rebuild copies when earlier writes of one queue are done',
  'join-apart': 'each queue writes to a replica being rebuilt from a moment of its own',
  'skip-own-intents': 'a rebuild leaves out what the replica itself had not flushed',
  'no-flush-after-rebuild': 'a rebuilt replica is in sync before it has flushed',
  'no-cut-on-rebuild': 'connections of before a rebuild go on',
  'no-fence': 'a new generation does not cut older connections',
  'skip-generation-check': 'a node admits any generation',
  'skip-epoch-check': 'a node admits any epoch',
  'no-session-fence': 'a new connection does not end the one it replaces',
  'acknowledge-early': 'a write completes with its first acknowledgement',
  'decide-alone': 'the agent goes on without a replica before the control plane says so',
  'serve-rebuilding': 'the agent reads from replicas that are being rebuilt',
  'read-past-writes': 'reads do not wait for the writes they overlap',
  'overlap-in-flight': 'overlapping writes are in flight together',
  'overlap-across-queues': 'overlapping requests of several queues are in flight together',
  'read-from-left': 'a queue shows what it reads from a replica that another queue goes on without',
  'answer-before-install':
    'the control plane answers a loss before the survivors know, and they count marks of any epoch',
  'remove-before-sync': 'a replica is gone before the one in its place is in sync',
  'ignore-versions': 'a commit takes place whatever another control plane has committed meanwhile',
  'skip-reconcile': 'a new writer begins without reconciling',
  'keep-rebuild-of-old-writer': 'a rebuild outlives its writer',
  'ignore-power-loss': 'a node that lost power serves as if nothing had happened',
  'ignore-checksum': 'a node serves what does not match its checksum',
  'swallow-write-error': 'a node acknowledges a write that failed',
  'repair-from-any': 'a region is repaired from any replica, whatever its state',
  'repair-unlocked': 'a region is repaired while writes of it go on',
  'repair-over-intents': 'a region is repaired though writes of it may be on their way to the peer',
  'repair-at-old-epoch': 'a region is repaired from a peer that may have left the membership',
  'loss-apart': 'a queue completes what was acknowledged before a loss that another queue has been told of',
  'swallow-loss': 'flushes succeed after the last replica lost power',
} as const;

export type MutationName = keyof typeof MUTATIONS;
export type Mutation = MutationName | null;

export function isMutation(name: string): name is MutationName {
  return Object.hasOwn(MUTATIONS, name);
}
