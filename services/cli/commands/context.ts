/** What every command is given: its streams, environment and the options that all commands share. */
import type { Command } from 'commander';
import type { Output } from '../output.ts';
import { RestClient } from '../rest/client.ts';

export interface Context {
  readonly output: Output;
  readonly environment: Readonly<Record<string, string | undefined>>;
}

export interface GlobalOptions {
  readonly rest: string;
  readonly json: boolean;
}

/** The options before or after the subcommand that every command has. */
export function globalOptions(command: Command): GlobalOptions {
  const { rest, json } = command.optsWithGlobals<{ rest: string; json?: boolean }>();
  return { rest, json: json ?? false };
}

export function restClient(command: Command): RestClient {
  return new RestClient(globalOptions(command).rest);
}
