/** How a command fails: a stable code and message for stderr, and the exit code that README.md documents. */
import { BlockwireError } from '@blockwire/shared/errors.ts';

export const ExitCode = {
  OK: 0,
  /** The control plane, or the operation itself, reported a failure. */
  FAILED: 1,
  /** The command line is wrong; nothing was asked of anyone. */
  USAGE: 2,
  /** No control plane answers at the REST address. */
  UNREACHABLE: 3,
} as const;

export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];

/**
 * A failed command. `code` is a string and not an ErrorCode, because a newer control plane may know codes that
 * this program does not; they are shown as they came.
 */
export class CommandError extends Error {
  override readonly name = 'CommandError';
  readonly code: string;
  readonly exitCode: ExitCode;

  constructor(code: string, message: string, exitCode: ExitCode = ExitCode.FAILED, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.exitCode = exitCode;
  }
}

/** The command line is wrong. */
export function usageError(message: string): CommandError {
  return new CommandError('BW_INVALID_ARGUMENT', message, ExitCode.USAGE);
}

/** The line for stderr and the exit code of any thrown value. */
export function describeFailure(thrown: unknown): { line: string; exitCode: ExitCode } {
  if (thrown instanceof CommandError)
    return { line: `blockwire: ${thrown.code}: ${thrown.message}`, exitCode: thrown.exitCode };
  if (thrown instanceof BlockwireError)
    return { line: `blockwire: ${thrown.code}: ${thrown.message}`, exitCode: ExitCode.FAILED };
  const text = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
  return { line: `blockwire: BW_INTERNAL: ${text}`, exitCode: ExitCode.FAILED };
}
