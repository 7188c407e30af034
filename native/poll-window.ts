/**
 * How long a wait looks for its end before it sleeps. Going to sleep and being woken takes a processor longer than many an
 * answer takes to come; looking for one that does not come is time lost to others. So the window opens while waits are
 * short, by doubling, and closes with the first that was longer than it may become: the rule of KVM's halt polling
 * (virt/kvm/kvm_main.c, kvm_vcpu_halt).
 */

const FIRST_US = 10;

export class PollWindow {
  readonly #maxUs: number;
  #us = 0;

  /** @param maxUs whole microseconds; 0: never */
  constructor(maxUs: number) {
    this.#maxUs = maxUs;
  }

  /** For the next wait, whole microseconds. */
  get us(): number {
    return this.#us;
  }

  /** A wait has ended after so long. Returns whether the window was open for all of it. */
  note(waitedUs: number): boolean {
    if (waitedUs <= this.#us) return true;
    if (waitedUs > this.#maxUs) this.#us = 0;
    else this.#us = Math.min(Math.max(FIRST_US, 2 * this.#us), this.#maxUs);
    return false;
  }
}
