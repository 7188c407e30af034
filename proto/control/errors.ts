/** How a failure crosses gRPC: a status for any client, and our stable code in the trailing metadata. */
import { Metadata, type ServiceError, status } from '@grpc/grpc-js';

/** Trailing metadata key that carries the `BW_...` code of a failed call. */
export const CODE_METADATA_KEY = 'blockwire-code';

/** A failed call as its caller sees it. */
export class RpcError extends Error {
  override readonly name = 'RpcError';
  /** The stable `BW_...` code, or null when the failure is the transport's own (unreachable, deadline). */
  readonly code: string | null;
  /** gRPC status number. */
  readonly status: number;

  constructor(code: string | null, grpcStatus: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.status = grpcStatus;
  }

  /** True when the same call may succeed later: the peer was not there, or did not answer in time. */
  get transient(): boolean {
    return this.status === status.UNAVAILABLE || this.status === status.DEADLINE_EXCEEDED;
  }
}

/** What a server hands to its callback to fail a call with a stable code. */
export function serviceError(code: string, grpcStatus: number, message: string): ServiceError {
  const metadata = new Metadata();
  metadata.set(CODE_METADATA_KEY, code);
  return Object.assign(new Error(message), { code: grpcStatus, details: message, metadata });
}

/** A client's failure, from a callback or a stream's `error` event, as an RpcError. */
export function toRpcError(thrown: unknown): RpcError {
  if (thrown instanceof RpcError) return thrown;
  if (!(thrown instanceof Error)) return new RpcError(null, status.UNKNOWN, String(thrown));
  const { code, details, metadata } = thrown as Partial<ServiceError>;
  const stableCode = metadata?.get(CODE_METADATA_KEY)[0];
  return new RpcError(
    stableCode === undefined ? null : String(stableCode),
    code ?? status.UNKNOWN,
    details || thrown.message,
    { cause: thrown },
  );
}
