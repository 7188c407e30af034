/** Errno numbers of Linux that have a meaning of their own on the wire ("Error values"). */
import * as nbd from '@blockwire/proto/nbd/constants.ts';

const EPERM = 1;
const ENOMEM = 12;
const EFBIG = 27;
const ENOSPC = 28;
const EROFS = 30;
const EDQUOT = 122;
export const EIO = 5;
/** What a block that does not match its checksum is told as: the errno of ext4 and btrfs for it. */
export const EBADMSG = 74;

/** The NBD error of a positive errno. */
export function nbdErrorOf(errno: number): number {
  switch (errno) {
    case ENOSPC:
    case EFBIG:
    case EDQUOT:
      return nbd.NBD_ENOSPC;
    case EPERM:
    case EROFS:
      return nbd.NBD_EPERM;
    case ENOMEM:
      return nbd.NBD_ENOMEM;
    default:
      return nbd.NBD_EIO;
  }
}
