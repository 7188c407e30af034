/** How many jobs a node takes part in at once: a rebuild is one at its target and one at its source. */

export class Slots {
  readonly #perNodeMax: number;
  readonly #nodesByJob = new Map<string, readonly string[]>();

  constructor(perNodeMax: number) {
    this.#perNodeMax = perNodeMax;
  }

  countOf(nodeId: string): number {
    let count = 0;
    for (const nodeIds of this.#nodesByJob.values()) if (nodeIds.includes(nodeId)) count++;
    return count;
  }

  has(job: string): boolean {
    return this.#nodesByJob.has(job);
  }

  /** False when one of the nodes has no room. */
  take(job: string, nodeIds: readonly string[]): boolean {
    if (this.has(job)) return true;
    if (nodeIds.some((nodeId) => this.countOf(nodeId) >= this.#perNodeMax)) return false;
    this.#nodesByJob.set(job, nodeIds);
    return true;
  }

  /** For a job that runs already, whoever began it. */
  occupy(job: string, nodeIds: readonly string[]): void {
    this.#nodesByJob.set(job, nodeIds);
  }

  /** Frees what this says is over. */
  release(isOver: (job: string) => boolean): void {
    for (const job of this.#nodesByJob.keys()) if (isOver(job)) this.#nodesByJob.delete(job);
  }
}
