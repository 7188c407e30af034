/** The gRPC edge: runs a handler, and answers its failure with a status and the stable code. */

import { serviceError } from '@blockwire/proto/control/errors.ts';
import { BlockwireError, isErrorCode, toBlockwireError } from '@blockwire/shared/errors.ts';
import type { Logger } from '@blockwire/shared/log.ts';
import type { ServerUnaryCall, sendUnaryData } from '@grpc/grpc-js';

/** A unary handler from an async function. */
export function unaryHandler<Request, Response>(
  log: Logger,
  handle: (request: Request) => Promise<Response>,
): (call: ServerUnaryCall<Request, Response>, callback: sendUnaryData<Response>) => void {
  return (call, callback) => {
    handle(call.request).then(
      (response) => callback(null, response),
      (thrown: unknown) => {
        const error = toBlockwireError(thrown);
        if (error.code === 'BW_INTERNAL') log.error({ err: error, method: call.getPath() }, 'a call failed');
        callback(toServiceError(error));
      },
    );
  };
}

export function toServiceError(error: BlockwireError): ReturnType<typeof serviceError> {
  return serviceError(error.code, error.grpcStatus, error.message);
}

/** What a node or agent reported for a command: null for success. */
export function reportedError(result: { errorCode: string; errorMessage: string }): BlockwireError | null {
  if (result.errorCode === '') return null;
  if (isErrorCode(result.errorCode)) return new BlockwireError(result.errorCode, result.errorMessage);
  // A newer peer may know codes that we do not.
  return new BlockwireError('BW_INTERNAL', `${result.errorCode}: ${result.errorMessage}`);
}
