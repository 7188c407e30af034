/** /v1/volumes/ID/snapshots: take, list, delete. Clones are made by POST /v1/volumes with a source. */
import { Type } from 'typebox';
import { nodes, volumes as volumeTable } from '../domain/records.ts';
import { snapshotsOf } from '../domain/snapshot-state.ts';
import type { TakenSnapshot } from '../domain/snapshots.ts';
import type { ControlParts, RestApp } from './app.ts';
import { answerOnce } from './idempotent.ts';
import { CreateSnapshotBody, ErrorBody, IdParams, SnapshotParams, SnapshotView } from './schemas.ts';
import { snapshotView } from './views.ts';

export function snapshotRoutes(app: RestApp, { context, snapshots, idempotency }: ControlParts): void {
  const { store, exportNames } = context;
  const tags = ['snapshots'];

  const views = async (taken: readonly TakenSnapshot[]): Promise<SnapshotView[]> => {
    const addresses = new Map((await nodes.list(store)).map(({ value }) => [value.id, value.nbdAddress]));
    return taken.map((each) => snapshotView(each, { addresses, exportNames }));
  };

  app.post(
    '/v1/volumes/:id/snapshots',
    {
      schema: {
        tags,
        summary:
          'Take a snapshot at every replica in sync; writes of an attached volume are held for at most 5 s',
        params: IdParams,
        body: CreateSnapshotBody,
        response: { 201: SnapshotView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    (request, reply) => {
      const { id: volumeId } = request.params;
      const { name } = request.body;
      return answerOnce(
        { idempotency, newId: context.newId },
        { request, reply },
        {
          idPrefix: 'snap',
          run: async () => (await views([await snapshots.create({ volumeId, name })]))[0]!,
          find: async () => {
            const volume = (await volumeTable.get(store, volumeId))?.value;
            const snapshot =
              volume === undefined ? undefined : snapshotsOf(volume).find((s) => s.name === name);
            if (volume === undefined || snapshot?.state !== 'ready') return null;
            return (await views([{ volume, snapshot }]))[0]!;
          },
        },
      );
    },
  );

  app.get(
    '/v1/volumes/:id/snapshots',
    {
      schema: {
        tags,
        summary: 'All snapshots of a volume',
        params: IdParams,
        response: { 200: Type.Array(SnapshotView), '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request) => views(await snapshots.list(request.params.id)),
  );

  app.delete(
    '/v1/volumes/:id/snapshots/:name',
    {
      schema: {
        tags,
        summary: 'Delete a snapshot; a copy whose node is offline goes when the node is back',
        params: SnapshotParams,
        response: { 204: Type.Null(), '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request, reply) => {
      const { id: volumeId, name } = request.params;
      await snapshots.delete({ volumeId, name });
      return reply.code(204).send(null);
    },
  );
}
