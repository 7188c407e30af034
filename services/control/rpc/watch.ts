/** A watch stream as the sink of a fleet member's commands. */

import { toBlockwireError } from '@blockwire/shared/errors.ts';
import { Metadata, type ServerWritableStream } from '@grpc/grpc-js';
import type { Fleet } from '../domain/fleet.ts';
import { toServiceError } from './errors.ts';

/**
 * Opens the member's watch on this stream until either side ends it.
 * @param encode the message for one command.
 */
export function openWatch<Request, Message, Action, Result>(options: {
  readonly call: ServerWritableStream<Request, Message>;
  readonly fleet: Fleet<Action, Result>;
  readonly memberId: () => string;
  readonly encode: (commandId: string, action: Action) => Message;
}): void {
  const { call, fleet, memberId, encode } = options;
  try {
    const close = fleet.openWatch(memberId(), {
      deliver: (commandId, action) => void call.write(encode(commandId, action)),
      end: () => void call.end(),
    });
    call.on('cancelled', close);
    call.on('close', close);
    call.on('error', close);
    // Headers tell the member that it is online, before there is any command.
    call.sendMetadata(new Metadata());
  } catch (thrown) {
    // grpc-js sends the status of an emitted error; a destroyed stream would leave the member waiting.
    call.emit('error', toServiceError(toBlockwireError(thrown)));
  }
}
