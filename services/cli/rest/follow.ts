/** Follows the control plane's events: connects again with the last id when the connection ends, for as long as it takes. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Value } from 'typebox/value';
import { CommandError, ExitCode } from '../errors.ts';
import { FrameParser } from './event-stream.ts';
import { openStream, parseJson } from './http.ts';
import { ControlEvent, ErrorBody } from './schema.ts';

const RETRY_MS = 1_000;
/** The control plane gives a sign of life more often. */
const SILENCE_MS_MAX = 60_000;

export type Followed =
  | { readonly kind: 'event'; readonly event: ControlEvent }
  /** For people: what is missing, or why it takes a while. */
  | { readonly kind: 'remark'; readonly text: string };

export interface FollowRequest {
  readonly volumeId: string | null;
  /** The id to begin after; null: with what happens now. */
  readonly after: string | null;
}

/** Never ends by itself. Throws CommandError when the first connection fails, and BW_PROTOCOL. */
export async function* follow(base: string, { volumeId, after }: FollowRequest): AsyncGenerator<Followed> {
  const query = volumeId === null ? '' : `?${new URLSearchParams({ volume: volumeId })}`;
  let lastId = after;
  let isFirst = true;
  for (;;) {
    try {
      const headers: Record<string, string> = lastId === null ? {} : { 'last-event-id': lastId };
      const parser = new FrameParser();
      for await (const text of openStream(base, `/v1/events${query}`, {
        headers,
        silenceMsMax: SILENCE_MS_MAX,
      })) {
        isFirst = false;
        for (const { id, kind, data } of parser.push(text)) {
          lastId = id ?? lastId;
          if (kind === 'gap') yield { kind: 'remark', text: 'events before these are not kept any more' };
          else if (kind === 'end') yield { kind: 'remark', text: reasonOf(data) };
          else if (data !== null) yield { kind: 'event', event: checked(data) };
        }
      }
    } catch (error) {
      const isPassing = error instanceof CommandError && error.exitCode === ExitCode.UNREACHABLE;
      if (isFirst || !isPassing) throw error;
      yield { kind: 'remark', text: error.message };
    }
    await sleep(RETRY_MS);
  }
}

function checked(data: string): ControlEvent {
  const event = parseJson(data);
  if (Value.Check(ControlEvent, event)) return event;
  throw new CommandError('BW_PROTOCOL', `not an event of a control plane: ${data.slice(0, 200)}`);
}

function reasonOf(data: string | null): string {
  const body = parseJson(data ?? '');
  return Value.Check(ErrorBody, body) ? `${body.code}: ${body.message}` : 'the stream has ended';
}
