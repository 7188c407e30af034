/** Work that is repeated inside the machine until it is told to end. An error that the application sees ends it early. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import type { MachineProcess } from '../vm/machine.ts';
import { fioVerify, type World } from './world.ts';

/** Pauses, in which the machine's processors are free for others. */
const BURSTS = '--thinktime=1s --thinktime_blocks=32';
const STOP_MS_MAX = 180_000;
let loadCount = 0;

export class Load {
  readonly #world: World;
  readonly #stopFile: string;
  readonly #process: MachineProcess;
  #end: { readonly exitCode: number; readonly output: string } | null = null;

  /** fio over the first so many bytes of a device, everything verified, again and again. */
  static fio(world: World, device: string, sizeBytes: number): Load {
    return new Load(world, `${fioVerify(device, { sizeBytes })} ${BURSTS}`);
  }

  /** Copies this project's sources into a mounted file system, reads them back from the device, and compares. */
  static files(world: World, directory: string): Load {
    const copy = `${directory}/$((runs % 2))`;
    return new Load(
      world,
      `rm -rf ${copy} && mkdir ${copy} && cp -r agent proto/nbd ${copy} && sync -f ${copy} && ` +
        `echo 3 > /proc/sys/vm/drop_caches && diff -r agent ${copy}/agent && diff -r proto/nbd ${copy}/nbd`,
    );
  }

  /** @param step a bash command; `$runs` counts how often it has succeeded */
  constructor(world: World, step: string) {
    this.#world = world;
    this.#stopFile = `/run/load-${++loadCount}-end`;
    this.#process = world.machine.start(
      `runs=0; while [ ! -e ${this.#stopFile} ]; do { ${step}; } || exit 1; runs=$((runs + 1)); done; echo "runs: $runs"`,
    );
    this.#process.done.then(
      ({ exitCode, output }) => {
        this.#end = { exitCode, output };
      },
      () => {},
    );
  }

  /** Throws BW_IO with its words and the processes' logs if it has ended. */
  assertGoesOn(): void {
    if (this.#end !== null) throw this.#failure(this.#end);
  }

  /** Resolves with how often it was done. Throws BW_IO if it failed, BW_TIMEOUT if it does not come to its end. */
  async stop(): Promise<number> {
    await this.#world.shell(`touch ${this.#stopFile}`);
    const late = setTimeout(() => this.#process.kill('SIGKILL'), STOP_MS_MAX);
    const { exitCode, output } = await this.#process.done;
    clearTimeout(late);
    if (exitCode !== 0) throw this.#failure({ exitCode, output });
    return Number(/^runs: (\d+)$/m.exec(output)?.[1]);
  }

  #failure({ exitCode, output }: { exitCode: number; output: string }): BlockwireError {
    const words = output.slice(-4000);
    return new BlockwireError(
      'BW_IO',
      `the load ended with ${exitCode}: ${words}\n${this.#world.describe()}\n`,
    );
  }
}
