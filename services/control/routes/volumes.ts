/** /v1/volumes: create, list, get, resize, delete. */
import { BlockwireError } from '@blockwire/shared/errors.ts';
import { Type } from 'typebox';
import { promote } from '../domain/promotion.ts';
import { nodes, volumes as volumeTable } from '../domain/records.ts';
import { readySnapshot } from '../domain/snapshot-state.ts';
import type { CreateVolumeRequest } from '../domain/volumes.ts';
import type { ControlParts, RestApp } from './app.ts';
import { answerOnce } from './idempotent.ts';
import {
  CreateVolumeBody,
  DeleteVolumeQuery,
  ErrorBody,
  IdParams,
  ListVolumesQuery,
  PromoteBody,
  ReplicaParams,
  ResizeVolumeBody,
  VolumeView,
} from './schemas.ts';
import { type ViewSources, volumeView } from './views.ts';

export function volumeRoutes(app: RestApp, parts: ControlParts): void {
  const { context, volumes, rebuilder, scrubber, idempotency } = parts;
  const tags = ['volumes'];

  const sources = async (): Promise<ViewSources> => ({
    addresses: new Map((await nodes.list(context.store)).map(({ value }) => [value.id, value.nbdAddress])),
    exportNames: context.exportNames,
    progress: rebuilder.progress,
  });

  const creation = async (body: CreateVolumeBody): Promise<Omit<CreateVolumeRequest, 'id'>> => {
    const { name, sizeBytes, replicas, source } = body;
    if (source === undefined) {
      return { name, sizeBytes: given('sizeBytes', sizeBytes), replicaCount: given('replicas', replicas) };
    }
    const { volume: volumeId, snapshot } = source;
    const origin = readySnapshot(await volumes.get(volumeId), snapshot);
    return {
      name,
      sizeBytes: sizeBytes ?? origin.sizeBytes,
      replicaCount: replicas ?? origin.nodeIds.length,
      source: { volumeId, snapshot },
    };
  };

  app.post(
    '/v1/volumes',
    {
      schema: {
        tags,
        summary: 'Create a volume; its replicas exist when this answers',
        body: CreateVolumeBody,
        response: { 201: VolumeView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    (request, reply) => {
      return answerOnce(
        { idempotency, newId: context.newId },
        { request, reply },
        {
          idPrefix: 'vol',
          run: async (id) => {
            const volume = await volumes.create({ id, ...(await creation(request.body)) });
            return volumeView(volume, await sources());
          },
          find: async (id) => {
            const found = await volumeTable.get(context.store, id);
            if (found === null) return null;
            return volumeView(found.value, await sources());
          },
        },
      );
    },
  );

  app.get(
    '/v1/volumes',
    {
      schema: {
        tags,
        summary: 'All volumes, or the one of a name',
        querystring: ListVolumesQuery,
        response: { 200: Type.Array(VolumeView), '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request) => {
      const found = await sources();
      return (await volumes.list(request.query)).map((volume) => volumeView(volume, found));
    },
  );

  app.get(
    '/v1/volumes/:id',
    {
      schema: {
        tags,
        summary: 'One volume',
        params: IdParams,
        response: { 200: VolumeView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request) => volumeView(await volumes.get(request.params.id), await sources()),
  );

  app.patch(
    '/v1/volumes/:id',
    {
      schema: {
        tags,
        summary: 'Make a volume larger; where it is attached, the device has the new size when this answers',
        params: IdParams,
        body: ResizeVolumeBody,
        response: { 200: VolumeView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request) =>
      volumeView(await volumes.resize(request.params.id, request.body.sizeBytes), await sources()),
  );

  app.post(
    '/v1/volumes/:id/scrub',
    {
      schema: {
        tags,
        summary:
          'Begin to compare the replicas in sync now, and to repair what does not match; the volume shows the result',
        params: IdParams,
        response: { 202: VolumeView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request, reply) => {
      const volume = await scrubber.start(request.params.id);
      return reply.code(202).send(volumeView(volume, await sources()));
    },
  );

  app.post(
    '/v1/volumes/:id/replicas/:node/promote',
    {
      schema: {
        tags,
        summary: 'Let a stale replica count when no replica in sync is left, and give up what it lacks',
        params: ReplicaParams,
        body: PromoteBody,
        response: { 200: VolumeView, '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request) => {
      const { id: volumeId, node: nodeId } = request.params;
      return volumeView(await promote(context, { volumeId, nodeId }), await sources());
    },
  );

  app.delete(
    '/v1/volumes/:id',
    {
      schema: {
        tags,
        summary: 'Delete a volume; a replica whose node is offline goes when the node is back',
        params: IdParams,
        querystring: DeleteVolumeQuery,
        response: { 204: Type.Null(), '4xx': ErrorBody, '5xx': ErrorBody },
      },
    },
    async (request, reply) => {
      await volumes.delete(request.params.id, { withSnapshots: request.query.snapshots === 'delete' });
      return reply.code(204).send(null);
    },
  );
}

/** A field that only a clone may leave out. */
function given<T>(field: string, value: T | undefined): T {
  if (value !== undefined) return value;
  throw new BlockwireError('BW_INVALID_ARGUMENT', `${field} is missing; only a clone may leave it out`, {
    details: { part: 'body', fields: [field] },
  });
}
