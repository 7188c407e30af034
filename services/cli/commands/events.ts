/** `blockwire events`: what happens in the cluster, as it happens. */
import type { Command } from 'commander';
import { usageError } from '../errors.ts';
import { writeAnswer } from '../output.ts';
import { follow } from '../rest/follow.ts';
import type { ControlEvent } from '../rest/schema.ts';
import { printable } from '../table.ts';
import { type Context, globalOptions, restClient } from './context.ts';

export function addEventsCommand(program: Command, { output }: Context): void {
  program
    .command('events')
    .description('follow what happens to volumes, replicas, nodes and agents, until Ctrl-C')
    .option(
      '--volume <volume>',
      'only what concerns this volume: its id, also of one that is deleted, or its name',
    )
    .option('--after <id>', 'begin with what is kept since this event; 0: with all of it')
    .action(async (options: { volume?: string; after?: string }, command: Command) => {
      const { volume, after = null } = options;
      if (after !== null && !/^\d{1,15}$/.test(after))
        throw usageError(`--after ${after} is not the id of an event`);
      const { rest, json } = globalOptions(command);
      const volumeId = volume === undefined ? null : await restClient(command).findVolumeId(volume);
      for await (const followed of follow(rest, { volumeId, after })) {
        if (followed.kind === 'remark') output.stderr(`blockwire: ${printable(followed.text)}\n`);
        else writeAnswer(output, json, followed.event, () => eventText(followed.event));
      }
    });
}

/** `2030-01-01T00:00:00.000Z  17  replica.stale  volume=vol-… node=node-2 epoch=4 reason="its node lost power"`. */
function eventText({ id, at, type, ...facts }: ControlEvent): string {
  const text = Object.entries(facts).map(([name, value]) => `${name}=${valueText(value)}`);
  return `${at}  ${String(id).padStart(5)}  ${type.padEnd(18)}  ${text.join(' ')}\n`;
}

function valueText(value: unknown): string {
  const text = printable(typeof value === 'string' ? value : JSON.stringify(value));
  return text.includes(' ') ? JSON.stringify(text) : text;
}
