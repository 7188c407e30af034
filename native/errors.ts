/** What a failed system call becomes: one class, with the call's name and the errno's name as its code. */
import { constants } from 'node:os';

const NAMES = new Map(Object.entries(constants.errno).map(([name, number]) => [number, name]));

/** The symbolic name of a positive errno: `EINVAL` for 22. */
export function errnoName(errno: number): string {
  return NAMES.get(errno) ?? `E${errno}`;
}

/** A system call failed. `code` is the errno's name, `errno` its positive number. */
export class KernelError extends Error {
  override readonly name = 'KernelError';
  readonly syscall: string;
  readonly errno: number;
  readonly code: string;

  constructor(syscall: string, errno: number) {
    super(`${syscall} failed: ${errnoName(errno)}`);
    this.syscall = syscall;
    this.errno = errno;
    this.code = errnoName(errno);
  }
}

/** Passes a result on, or throws what a negative errno stands for. */
export function checkResult(syscall: string, result: number): number {
  if (result < 0) throw new KernelError(syscall, -result);
  return result;
}

function translate(thrown: unknown): unknown {
  if (thrown instanceof Error && 'errno' in thrown && 'syscall' in thrown) {
    return new KernelError(String(thrown.syscall), Number(thrown.errno));
  }
  return thrown;
}

/**
 * The same functions, throwing KernelError. Those named in `direct` are passed through untouched: they never throw
 * system errors and are too hot for a wrapper.
 */
export function throwsKernelError<T extends object>(functions: T, direct: readonly (keyof T)[]): T {
  const wrapped = { ...functions };
  for (const name of Object.keys(functions) as (keyof T)[]) {
    const original = functions[name];
    if (direct.includes(name) || typeof original !== 'function') continue;
    wrapped[name] = ((...parameters: unknown[]) => {
      try {
        return original(...parameters);
      } catch (thrown) {
        throw translate(thrown);
      }
    }) as T[keyof T];
  }
  return wrapped;
}
