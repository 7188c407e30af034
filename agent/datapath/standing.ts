/**
 * How each replica of a volume stands with one queue, a bit each: who is a member, who is connected, who is lost. Pure logic;
 * what follows from a change is the mirror's.
 */

/** What came of losing a replica. */
export type Loss =
  /** It is no member: nobody waits for it. */
  | 'stranger'
  /** It was lost already, and is reported. */
  | 'known'
  /** It is the last one in sync, and never given up. */
  | 'last'
  | 'new';

export class Standing {
  inSync: number;
  /** Being rebuilt: those that get every new write, and those whose link is not up yet. */
  joined = 0;
  joining = 0;
  up = 0;
  /** Reported as lost, the new membership not yet here. */
  lost = 0;
  /** Left the membership, their links still closing. */
  leaving = 0;
  /** On this host: asked first. */
  local = 0;

  constructor(inSync: number) {
    this.inSync = inSync;
  }

  /** Members that get every write. */
  get written(): number {
    return this.inSync | this.joined;
  }

  /** Those of them that can be sent one now. */
  get reachable(): number {
    return (this.inSync | this.joined) & this.up & ~this.lost;
  }

  /** In sync, and connected. */
  get serving(): number {
    return this.inSync & this.up & ~this.lost;
  }

  /**
   * A new membership. Returns those that left it, which includes `rejoined`, and those that were lost and are still members:
   * it answers every report, so they are waited for, or reported again.
   */
  change(inSync: number, rebuilding: number, rejoined: number): { left: number; kept: number } {
    const before = this.written | this.joining;
    const joined = rebuilding & this.joined & ~rejoined;
    const left = before & (rejoined | ~(inSync | joined | (rebuilding & this.joining)));
    const kept = this.lost & before & ~left;
    this.inSync = inSync;
    this.joined = joined;
    this.joining = rebuilding & ~joined;
    this.lost = 0;
    return { left, kept };
  }

  /** No replica is a member any more. */
  clear(): void {
    this.inSync = 0;
    this.joined = 0;
    this.joining = 0;
  }

  /** One that was to join counts as a member: its rebuild cannot begin. */
  lose(bit: number): Loss {
    if (((this.written | this.joining) & bit) === 0) return 'stranger';
    if ((this.lost & bit) !== 0) return 'known';
    if ((this.inSync & bit) !== 0 && (this.inSync & ~this.lost & ~bit) === 0) return 'last';
    this.lost |= bit;
    return 'new';
  }
}
