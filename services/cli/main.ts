/** Entry of the `blockwire` command once a Node that runs TypeScript is there; blockwire.mjs comes before. */
import { processOutput } from './output.ts';
import { runCommandLine } from './program.ts';

/** @param argv without the interpreter and the program. Answers the exit code. */
export function main(argv: readonly string[]): Promise<number> {
  // A reader that has seen enough (`| head`) is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    process.exit(error.code === 'EPIPE' ? 0 : 1);
  });
  return runCommandLine(argv, { output: processOutput, environment: process.env });
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
