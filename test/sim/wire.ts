/** What agents and nodes say to each other on a connection. */
import type { MemberClaim } from '@blockwire/node/replication/admission.ts';

export interface Mark {
  readonly number: number;
  readonly epoch: number;
}

export type ToNode =
  | { readonly type: 'hello'; readonly claim: MemberClaim; readonly link: string; readonly attempt: number }
  | {
      readonly type: 'write';
      readonly tag: number;
      readonly offset: number;
      readonly length: number;
      readonly value: number;
    }
  | { readonly type: 'read'; readonly tag: number; readonly offset: number; readonly length: number }
  | { readonly type: 'flush'; readonly tag: number }
  | { readonly type: 'mark'; readonly mark: Mark }
  | { readonly type: 'checkpoint'; readonly mark: Mark }
  /** The contexts blockwire:changed-since/EPOCH and blockwire:intent. */
  | { readonly type: 'status'; readonly sinceEpoch: number | null };

export type ToClient =
  | { readonly type: 'welcome' }
  | { readonly type: 'refused'; readonly code: string }
  | { readonly type: 'done'; readonly tag: number; readonly error: number }
  | { readonly type: 'data'; readonly tag: number; readonly values: readonly number[] }
  | { readonly type: 'regions'; readonly regions: readonly number[] };
