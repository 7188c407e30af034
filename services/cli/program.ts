/** The command line: which commands there are, and what becomes of a failure. */
import { readVersion } from '@blockwire/shared/version.ts';
import { Command, CommanderError } from 'commander';
import type { Context } from './commands/context.ts';
import { addDoctorCommand } from './commands/doctor.ts';
import { addEventsCommand } from './commands/events.ts';
import { addProcessCommands } from './commands/processes.ts';
import { addUpCommand } from './commands/up.ts';
import { addVolumeCommands } from './commands/volume.ts';
import { describeFailure, ExitCode } from './errors.ts';
import { REST_DEFAULT } from './rest/client.ts';

const EXIT_CODES = `
Exit codes: 0 done, 1 the control plane or the operation failed, 2 wrong command line, 3 no control plane reached.`;

/** Runs one command line (without the program's name) and answers the exit code; never throws. */
export async function runCommandLine(argv: readonly string[], context: Context): Promise<ExitCode> {
  let exitCode: ExitCode = ExitCode.OK;
  const setExitCode = (code: ExitCode): void => {
    exitCode = code;
  };
  try {
    await createProgram(context, setExitCode).parseAsync(argv, { from: 'user' });
    return exitCode;
  } catch (error) {
    // commander has already written its message or help.
    if (error instanceof CommanderError) return error.exitCode === 0 ? ExitCode.OK : ExitCode.USAGE;
    const failure = describeFailure(error);
    context.output.stderr(`${failure.line}\n`);
    return failure.exitCode;
  }
}

function createProgram(context: Context, setExitCode: (code: ExitCode) => void): Command {
  const { output, environment } = context;
  const program = new Command('blockwire')
    .description('Networked block storage: mirrored volumes as local disks.')
    .option('--rest <url>', 'REST address of the control plane (or BLOCKWIRE_REST)', restDefault(environment))
    .option('--json', 'answer in JSON, one document a line')
    .version(readVersion())
    .addHelpText('after', EXIT_CODES)
    .configureHelp({ showGlobalOptions: true })
    .showHelpAfterError('(--help shows the usage)')
    .configureOutput({
      writeOut: output.stdout,
      writeErr: output.stderr,
      outputError: (message, write) => write(message.replace(/^error: /, 'blockwire: BW_INVALID_ARGUMENT: ')),
    })
    .exitOverride();
  addUpCommand(program, context, setExitCode);
  addProcessCommands(program, context);
  addDoctorCommand(program, context, setExitCode);
  addVolumeCommands(program, context);
  addEventsCommand(program, context);
  return program;
}

function restDefault(environment: Context['environment']): string {
  return environment.BLOCKWIRE_REST || REST_DEFAULT;
}
