/**
 * One error class and one table: every failure a user can meet has a stable code here, and the table says
 * what the code becomes in HTTP, gRPC and NBD.
 */

/** gRPC status numbers, from the gRPC core specification ("Status codes and their use in gRPC"). */
export const GrpcStatus = {
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  INTERNAL: 13,
  UNAVAILABLE: 14,
} as const;

/** NBD error numbers, from the NBD protocol specification, "Error values". */
export const NbdErrno = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

interface Mapping {
  readonly http: number;
  readonly grpc: number;
  readonly nbd: number;
}

const { INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED } = GrpcStatus;
const { RESOURCE_EXHAUSTED, FAILED_PRECONDITION, INTERNAL, UNAVAILABLE } = GrpcStatus;

export const ERROR_TABLE = {
  BW_INVALID_ARGUMENT: { http: 400, grpc: INVALID_ARGUMENT, nbd: NbdErrno.EINVAL },
  BW_NOT_FOUND: { http: 404, grpc: NOT_FOUND, nbd: NbdErrno.EINVAL },
  BW_VOLUME_NOT_FOUND: { http: 404, grpc: NOT_FOUND, nbd: NbdErrno.EINVAL },
  BW_VOLUME_NAME_TAKEN: { http: 409, grpc: ALREADY_EXISTS, nbd: NbdErrno.EINVAL },
  BW_VOLUME_IN_USE: { http: 409, grpc: FAILED_PRECONDITION, nbd: NbdErrno.EPERM },
  BW_VOLUME_NOT_READY: { http: 409, grpc: FAILED_PRECONDITION, nbd: NbdErrno.EPERM },
  BW_IDEMPOTENCY_MISMATCH: { http: 422, grpc: INVALID_ARGUMENT, nbd: NbdErrno.EINVAL },
  BW_ATTACHMENT_NOT_FOUND: { http: 404, grpc: NOT_FOUND, nbd: NbdErrno.EINVAL },
  BW_AGENT_NOT_FOUND: { http: 404, grpc: NOT_FOUND, nbd: NbdErrno.EINVAL },
  BW_AGENT_OFFLINE: { http: 503, grpc: UNAVAILABLE, nbd: NbdErrno.EIO },
  BW_ATTACH_FAILED: { http: 502, grpc: INTERNAL, nbd: NbdErrno.EIO },
  BW_DATAPATH_UNAVAILABLE: { http: 409, grpc: FAILED_PRECONDITION, nbd: NbdErrno.ENOTSUP },
  BW_DEVICE_BUSY: { http: 409, grpc: FAILED_PRECONDITION, nbd: NbdErrno.EPERM },
  BW_NODE_NOT_FOUND: { http: 404, grpc: NOT_FOUND, nbd: NbdErrno.EINVAL },
  BW_NODE_OFFLINE: { http: 503, grpc: UNAVAILABLE, nbd: NbdErrno.EIO },
  BW_NOT_ENOUGH_NODES: { http: 409, grpc: FAILED_PRECONDITION, nbd: NbdErrno.ENOSPC },
  BW_NOT_ENOUGH_SPACE: { http: 507, grpc: RESOURCE_EXHAUSTED, nbd: NbdErrno.ENOSPC },
  BW_NO_IN_SYNC_REPLICA: { http: 503, grpc: UNAVAILABLE, nbd: NbdErrno.EIO },
  BW_REPLICA_NOT_FOUND: { http: 404, grpc: NOT_FOUND, nbd: NbdErrno.EINVAL },
  BW_REPLICA_EXISTS: { http: 409, grpc: ALREADY_EXISTS, nbd: NbdErrno.EINVAL },
  BW_REPLICA_DAMAGED: { http: 500, grpc: INTERNAL, nbd: NbdErrno.EIO },
  BW_SNAPSHOT_NOT_FOUND: { http: 404, grpc: NOT_FOUND, nbd: NbdErrno.EINVAL },
  BW_SNAPSHOT_NAME_TAKEN: { http: 409, grpc: ALREADY_EXISTS, nbd: NbdErrno.EINVAL },
  BW_VOLUME_HAS_SNAPSHOTS: { http: 409, grpc: FAILED_PRECONDITION, nbd: NbdErrno.EPERM },
  BW_SNAPSHOT_UNSUPPORTED: { http: 501, grpc: FAILED_PRECONDITION, nbd: NbdErrno.ENOTSUP },
  BW_CAPABILITY_INVALID: { http: 403, grpc: PERMISSION_DENIED, nbd: NbdErrno.EPERM },
  BW_GENERATION_OLD: { http: 409, grpc: FAILED_PRECONDITION, nbd: NbdErrno.EPERM },
  BW_EPOCH_OLD: { http: 409, grpc: FAILED_PRECONDITION, nbd: NbdErrno.EPERM },
  BW_CONFLICT: { http: 409, grpc: FAILED_PRECONDITION, nbd: NbdErrno.EPERM },
  BW_PEER_UNREACHABLE: { http: 502, grpc: UNAVAILABLE, nbd: NbdErrno.EIO },
  BW_PROTOCOL: { http: 502, grpc: INTERNAL, nbd: NbdErrno.EINVAL },
  BW_KERNEL: { http: 500, grpc: INTERNAL, nbd: NbdErrno.EIO },
  BW_UNSUPPORTED_HOST: { http: 501, grpc: FAILED_PRECONDITION, nbd: NbdErrno.ENOTSUP },
  BW_TIMEOUT: { http: 504, grpc: DEADLINE_EXCEEDED, nbd: NbdErrno.EIO },
  BW_IO: { http: 500, grpc: INTERNAL, nbd: NbdErrno.EIO },
  BW_BODY_TOO_LARGE: { http: 413, grpc: RESOURCE_EXHAUSTED, nbd: NbdErrno.EOVERFLOW },
  BW_OVERLOADED: { http: 503, grpc: RESOURCE_EXHAUSTED, nbd: NbdErrno.ENOMEM },
  BW_SHUTTING_DOWN: { http: 503, grpc: UNAVAILABLE, nbd: NbdErrno.ESHUTDOWN },
  BW_INTERNAL: { http: 500, grpc: INTERNAL, nbd: NbdErrno.EIO },
} as const satisfies Record<string, Mapping>;

export type ErrorCode = keyof typeof ERROR_TABLE;

export interface BlockwireErrorOptions extends ErrorOptions {
  /** Facts about the failure for a program to read, such as the ids it concerns; JSON values only. */
  readonly details?: Readonly<Record<string, unknown>>;
}

/** A failure with a stable code and a message that says what to do. */
export class BlockwireError extends Error {
  override readonly name = 'BlockwireError';
  readonly code: ErrorCode;
  readonly details: Readonly<Record<string, unknown>> | null;

  constructor(code: ErrorCode, message: string, options?: BlockwireErrorOptions) {
    super(message, options);
    this.code = code;
    this.details = options?.details ?? null;
  }

  get httpStatus(): number {
    return ERROR_TABLE[this.code].http;
  }

  get grpcStatus(): number {
    return ERROR_TABLE[this.code].grpc;
  }

  get nbdErrno(): number {
    return ERROR_TABLE[this.code].nbd;
  }
}

export function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(ERROR_TABLE, text);
}

/** Any thrown value as a BlockwireError; what is not one already becomes `fallback`. */
export function toBlockwireError(thrown: unknown, fallback: ErrorCode = 'BW_INTERNAL'): BlockwireError {
  if (thrown instanceof BlockwireError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new BlockwireError(fallback, message, { cause: thrown });
}
