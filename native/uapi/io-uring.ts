/** Numbers of include/uapi/linux/io_uring.h (Linux 7.3), as far as Blockwire uses them. */

export const IoringOp = {
  NOP: 0,
  FSYNC: 3,
  READ_FIXED: 4,
  WRITE_FIXED: 5,
  POLL_ADD: 6,
  SENDMSG: 9,
  RECVMSG: 10,
  TIMEOUT: 11,
  ACCEPT: 13,
  ASYNC_CANCEL: 14,
  LINK_TIMEOUT: 15,
  CONNECT: 16,
  FALLOCATE: 17,
  CLOSE: 19,
  READ: 22,
  WRITE: 23,
  SEND: 26,
  RECV: 27,
  SPLICE: 30,
  TEE: 33,
  SHUTDOWN: 34,
  MSG_RING: 40,
  URING_CMD: 46,
  SEND_ZC: 47,
  SENDMSG_ZC: 48,
} as const;

/** sqe->flags */
export const Iosqe = {
  FIXED_FILE: 1 << 0,
  IO_DRAIN: 1 << 1,
  IO_LINK: 1 << 2,
  IO_HARDLINK: 1 << 3,
  ASYNC: 1 << 4,
  BUFFER_SELECT: 1 << 5,
  CQE_SKIP_SUCCESS: 1 << 6,
} as const;

/** io_uring_setup flags */
export const IoringSetup = {
  CQSIZE: 1 << 3,
  CLAMP: 1 << 4,
  SUBMIT_ALL: 1 << 7,
  TASKRUN_FLAG: 1 << 9,
  SINGLE_ISSUER: 1 << 12,
  DEFER_TASKRUN: 1 << 13,
  /** Linux 6.6 */
  NO_SQARRAY: 1 << 16,
} as const;

/** params.features */
export const IoringFeature = {
  SINGLE_MMAP: 1 << 0,
  NODROP: 1 << 1,
  EXT_ARG: 1 << 8,
  CQE_SKIP: 1 << 11,
} as const;

/** cqe->flags */
export const IoringCqe = {
  BUFFER: 1 << 0,
  MORE: 1 << 1,
  /** More was in the socket than one receive took. */
  SOCK_NONEMPTY: 1 << 2,
  NOTIF: 1 << 3,
} as const;

/** sq_ring->flags */
export const IORING_SQ_CQ_OVERFLOW = 1 << 1;

/** mmap offsets of a ring's descriptor */
export const IORING_OFF_SQ_RING = 0;
export const IORING_OFF_SQES = 0x1000_0000;

export const IoringRegister = {
  BUFFERS: 0,
  UNREGISTER_BUFFERS: 1,
  FILES: 2,
  UNREGISTER_FILES: 3,
  FILES_UPDATE: 6,
  PROBE: 8,
  FILES2: 13,
  FILES_UPDATE2: 14,
  BUFFERS2: 15,
  BUFFERS_UPDATE: 16,
} as const;

export const IORING_RSRC_REGISTER_SPARSE = 1 << 0;

/** sqe->ioprio of send and receive */
export const IoringRecvsend = {
  POLL_FIRST: 1 << 0,
  RECV_MULTISHOT: 1 << 1,
  FIXED_BUF: 1 << 2,
  SEND_ZC_REPORT_USAGE: 1 << 3,
  BUNDLE: 1 << 4,
} as const;

/** sqe->poll32_events (poll.h) */
export const POLLOUT = 0x4;

/** CQE result of a SEND_ZC notification with REPORT_USAGE: set when the kernel copied after all. */
export const IORING_NOTIF_USAGE_ZC_COPIED = 0x8000_0000;

/** sqe->ioprio of ACCEPT */
export const IORING_ACCEPT_MULTISHOT = 1 << 0;

/** sqe->fsync_flags */
export const IORING_FSYNC_DATASYNC = 1 << 0;

/** sqe->rw_flags (include/uapi/linux/fs.h) */
export const RWF_DSYNC = 0x2;

/** send and receive flags (include/linux/socket.h) */
export const MSG_DONTWAIT = 0x40;
export const MSG_WAITALL = 0x100;
export const MSG_NOSIGNAL = 0x4000;
export const MSG_MORE = 0x8000;
