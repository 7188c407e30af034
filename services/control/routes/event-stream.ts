/**
 * Events as a server-sent stream (WHATWG HTML, "Server-sent events"): what a reader does not take is not read from the store,
 * and one that takes nothing for too long is told why and cut off.
 */
import { once } from 'node:events';
import type { Writable } from 'node:stream';
import { BlockwireError, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { FeedItem } from '../domain/event-feed.ts';
import { errorBody } from './errors.ts';

export interface EventStreamOptions {
  /** Something is sent at least so often. */
  readonly heartbeatMs: number;
  /** How long a reader may take nothing. */
  readonly slowMsMax: number;
  readonly now: () => number;
  readonly signal: AbortSignal;
}

/** How long one that is cut off may still take the reason. */
const END_MS_MAX = 2_000;

/** Writes what comes until there is no more or the reader is gone; never rejects. The stream is ended then, or destroyed. */
export async function writeEvents(
  items: AsyncIterable<FeedItem>,
  out: Writable,
  options: EventStreamOptions,
): Promise<void> {
  const { heartbeatMs, now, signal } = options;
  let writtenAtMs = Number.NEGATIVE_INFINITY;
  try {
    for await (const item of items) {
      if (item.kind === 'idle' && now() - writtenAtMs < heartbeatMs) continue;
      writtenAtMs = now();
      if (!out.write(textOf(item))) await drained(out, options);
    }
    if (signal.reason instanceof BlockwireError) throw signal.reason;
    out.end();
  } catch (thrown) {
    const error = toBlockwireError(thrown);
    // A slow one that comes back in time reads why.
    out.end(`event: end\ndata: ${JSON.stringify(errorBody(error))}\n\n`);
    const timer = setTimeout(() => out.destroy(), END_MS_MAX);
    out.once('close', () => clearTimeout(timer));
  }
}

function textOf(item: FeedItem): string {
  const { id, kind } = item;
  // Only its id: a reader that waits for a rare event does not fall behind what is kept.
  if (kind === 'idle') return `:\nid: ${id}\n\n`;
  if (kind === 'gap') return `id: ${id}\nevent: gap\ndata: {"after":${id}}\n\n`;
  return `id: ${id}\ndata: ${JSON.stringify({ id, ...item.event })}\n\n`;
}

async function drained(out: Writable, { slowMsMax, signal }: EventStreamOptions): Promise<void> {
  const late = AbortSignal.timeout(slowMsMax);
  try {
    await once(out, 'drain', { signal: AbortSignal.any([signal, late]) });
  } catch (thrown) {
    if (signal.aborted) return;
    if (!late.aborted) throw thrown;
    throw new BlockwireError(
      'BW_TIMEOUT',
      `this reader took nothing for ${slowMsMax / 1000} s; go on with the last id as Last-Event-ID`,
    );
  }
}
