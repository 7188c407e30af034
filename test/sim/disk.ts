/**
 * A node's disk. Data is durable only after a sync; pages of the region map and the descriptor are written durably, and an
 * entry of the one and the whole of the other change at once or not at all. What is under way when power fails, or was not
 * synced, is there or not, each unit for itself. What rots reads as something else, and its checksum says so.
 */
import type { Installed } from '@blockwire/node/replication/admission.ts';
import { UNITS_COUNT } from './geometry.ts';
import type { World } from './world.ts';

const DISK_MS = 0.4;
const EIO = 5;
/** What a unit holds that has rotted. */
const ROT = -1;

/** Something a disk is doing. */
interface Work {
  /** Power or the process fails meanwhile: does a part of it, or nothing. */
  readonly interrupt: () => void;
}

export class Disk {
  readonly #world: World;
  /** What a read finds. */
  readonly data = new Int32Array(UNITS_COUNT);
  readonly #durable = new Int32Array(UNITS_COUNT);
  readonly #isDirty = new Uint8Array(UNITS_COUNT);
  /** Counts writes, so that an older sync does not make newer content durable. */
  readonly #version = new Float64Array(UNITS_COUNT);
  readonly #durableVersion = new Float64Array(UNITS_COUNT);
  #versions = 0;
  regionWords: Uint32Array;
  installed: Installed;
  /** Writes that are acknowledged and not synced may be lost: set when power fails with intents, read at the next start. */
  lostPower = false;
  readonly #underWay = new Set<Work>();
  /** Multiplies all times. */
  slowness = 1;
  /** Every other write of data fails. */
  isFailing = false;
  /** A write has failed here. */
  hasFailed = false;
  /** By unit: what it held. */
  readonly #rotten = new Map<number, number>();

  constructor(world: World, regionWordCount: number, installed: Installed) {
    this.#world = world;
    this.regionWords = new Uint32Array(regionWordCount);
    this.installed = installed;
  }

  /** Writes units, each with its value; `done` runs when it is in the disk's cache, or with an errno. */
  write(units: readonly number[], values: readonly number[], done: (error: number) => void): void {
    const apply = (i: number): void => {
      const unit = units[i]!;
      this.data[unit] = values[i]!;
      this.#rotten.delete(unit);
      this.#isDirty[unit] = 1;
      this.#version[unit] = ++this.#versions;
    };
    const some = (): void => {
      for (let i = 0; i < units.length; i++) if (this.#world.random.oneIn(2)) apply(i);
    };
    const all = (): void => {
      for (let i = 0; i < units.length; i++) apply(i);
    };
    const fails = this.isFailing && this.#world.random.oneIn(2);
    this.hasFailed ||= fails;
    this.#work(1, fails ? some : all, some, () => done(fails ? EIO : 0));
  }

  /** Rots a unit that holds something and is not on its way to the medium; false if there is none. */
  rot(choice: number): boolean {
    const candidates = Array.from(this.data.keys()).filter(
      (unit) => this.data[unit] !== 0 && this.#isDirty[unit] === 0 && !this.#rotten.has(unit),
    );
    if (candidates.length === 0) return false;
    const unit = candidates[choice % candidates.length]!;
    this.#rotten.set(unit, this.data[unit]!);
    this.data[unit] = ROT;
    return true;
  }

  get hasRot(): boolean {
    return this.#rotten.size > 0;
  }

  isRotten(unit: number): boolean {
    return this.#rotten.has(unit);
  }

  /** Undoes rot, of the units that are named. */
  unrot(isNamed: (unit: number) => boolean = () => true): void {
    for (const [unit, value] of this.#rotten) {
      if (!isNamed(unit)) continue;
      this.#rotten.delete(unit);
      this.data[unit] = value;
    }
  }

  /** Makes durable what is in the cache now. */
  sync(done: () => void): void {
    const units: number[] = [];
    for (let unit = 0; unit < UNITS_COUNT; unit++) if (this.#isDirty[unit] === 1) units.push(unit);
    const values = units.map((unit) => this.data[unit]!);
    const versions = units.map((unit) => this.#version[unit]!);
    const apply = (i: number): void => {
      const unit = units[i]!;
      if (versions[i]! <= this.#durableVersion[unit]!) return;
      this.#durable[unit] = values[i]!;
      this.#durableVersion[unit] = versions[i]!;
      if (this.#version[unit] === versions[i]) this.#isDirty[unit] = 0;
    };
    const all = (): void => {
      for (let i = 0; i < units.length; i++) apply(i);
    };
    const some = (): void => {
      for (let i = 0; i < units.length; i++) if (this.#world.random.oneIn(2)) apply(i);
    };
    this.#work(3, all, some, done);
  }

  /** Writes entries (pairs of words) of the region map, durably. @param at the first word */
  writeRegions(at: number, words: Uint32Array, done: () => void): void {
    this.#work(
      2,
      () => this.regionWords.set(words, at),
      () => {
        for (let i = 0; i < words.length; i += 2) {
          if (this.#world.random.oneIn(2)) this.regionWords.set(words.subarray(i, i + 2), at + i);
        }
      },
      done,
    );
  }

  writeDescriptor(installed: Installed, done: () => void): void {
    const apply = (): void => {
      this.installed = installed;
    };
    this.#work(3, apply, () => this.#world.random.oneIn(2) && apply(), done);
  }

  /** The process has ended: what was under way may still happen, now or never. */
  processKilled(): void {
    for (const work of [...this.#underWay]) work.interrupt();
    this.#underWay.clear();
  }

  /** As `processKilled`; and what was not synced is there or not. */
  powerFailed(): void {
    this.processKilled();
    for (let unit = 0; unit < UNITS_COUNT; unit++) {
      if (this.#isDirty[unit] === 0) continue;
      if (this.#world.random.oneIn(3)) this.data[unit] = this.#durable[unit]!;
      this.#durable[unit] = this.data[unit]!;
      this.#isDirty[unit] = 0;
      this.#durableVersion[unit] = ++this.#versions;
      this.#version[unit] = this.#versions;
    }
    this.lostPower = true;
  }

  #work(weight: number, apply: () => void, interrupted: () => void, done: () => void): void {
    const work: Work = { interrupt: interrupted };
    this.#underWay.add(work);
    this.#world.after(this.#world.delay(DISK_MS * weight) * this.slowness, () => {
      if (!this.#underWay.delete(work)) return;
      apply();
      done();
    });
  }
}
