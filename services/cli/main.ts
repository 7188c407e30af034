/** Entry of the `blockwire` command once a Node that runs TypeScript is there; blockwire.mjs comes before. */
import { becomeProcess, processRequest } from './commands/run.ts';
import { describeFailure } from './errors.ts';
import { processOutput } from './output.ts';

/** @param argv without the interpreter and the program. Answers the exit code; never throws. */
export async function main(argv: readonly string[]): Promise<number> {
  // A reader that has seen enough (`| head`) is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    process.exit(error.code === 'EPIPE' ? 0 : 1);
  });
  try {
    const request = processRequest(argv);
    if (request !== null) await becomeProcess(request.role, request.args);
    const { runCommandLine } = await import('./program.ts');
    return await runCommandLine(argv, { output: processOutput, environment: process.env });
  } catch (error) {
    const failure = describeFailure(error);
    process.stderr.write(`${failure.line}\n`);
    return failure.exitCode;
  }
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
