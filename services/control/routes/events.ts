/** /v1/events: every change of a state, as it happens. */
import { PassThrough, type Readable } from 'node:stream';
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { Type } from 'typebox';
import { followEvents } from '../domain/event-feed.ts';
import type { ControlParts, RestApp } from './app.ts';
import { writeEvents } from './event-stream.ts';
import { ErrorBody, EventsHeaders, EventsQuery, EventView } from './schemas.ts';

const READERS_MAX = 256;
const BUFFER_BYTES = 64 * 1024;

export function eventRoutes(app: RestApp, { context }: Pick<ControlParts, 'context'>): void {
  const { timing, now } = context;
  const readers = new Set<AbortController>();

  // A stream never ends by itself, and the server waits for all requests.
  app.addHook('preClose', async () => {
    const reason = new BlockwireError('BW_SHUTTING_DOWN', 'the control plane is stopping');
    for (const reader of readers) reader.abort(reason);
  });

  app.get(
    '/v1/events',
    {
      schema: {
        tags: ['events'],
        summary:
          'Follow every change of a state, as server-sent events; `gap`: the next ones after Last-Event-ID are not kept any more, ' +
          '`end`: why the stream ends; an empty comment with an id: nothing happened meanwhile',
        querystring: EventsQuery,
        headers: EventsHeaders,
        produces: ['text/event-stream'],
        response: {
          200: { content: { 'text/event-stream': { schema: Type.Unsafe<Readable>(EventView) } } },
          '4xx': ErrorBody,
          '5xx': ErrorBody,
        },
      },
    },
    async (request, reply) => {
      if (readers.size >= READERS_MAX) {
        throw new BlockwireError('BW_OVERLOADED', `${READERS_MAX} readers follow the events already`);
      }
      const reader = new AbortController();
      readers.add(reader);
      const out = new PassThrough({ highWaterMark: BUFFER_BYTES });
      out.once('close', () => {
        readers.delete(reader);
        reader.abort();
      });
      const { signal } = reader;
      const { volume = null, after } = request.query;
      const lastId = request.headers['last-event-id'] ?? after;
      const afterId = lastId === undefined ? null : Number(lastId);
      const items = followEvents(context, { afterId, volumeId: volume, signal });
      void writeEvents(items, out, {
        ...{ heartbeatMs: timing.eventHeartbeatMs, slowMsMax: timing.slowReaderMs, now, signal },
      });
      return (
        reply
          .header('content-type', 'text/event-stream')
          .header('cache-control', 'no-store')
          // A server that stops waits for connections, also idle ones that were busy when it began to.
          .header('connection', 'close')
          .header('x-accel-buffering', 'no')
          .send(out)
      );
    },
  );
}
