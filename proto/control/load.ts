/**
 * Loads the control protocol from its `.proto` files, once a process. The options agree with `../build.ts`,
 * which generates the types: 64-bit integers are numbers (sizes and counters stay below 2^53), enums are
 * strings, absent fields have their default, and a oneof is named by a virtual field.
 */
import { type GrpcObject, loadPackageDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { ProtoGrpcType as AgentsPackage } from '../build/agents.ts';
import type { ProtoGrpcType as NodesPackage } from '../build/nodes.ts';

type ControlPackage = AgentsPackage['blockwire']['control']['v1'] &
  NodesPackage['blockwire']['control']['v1'];

let loaded: ControlPackage | null = null;

/** The services and client constructors of `blockwire.control.v1`. Throws if a `.proto` file is not valid. */
export function loadControl(): ControlPackage {
  if (loaded === null) {
    const definition = loadSync(['nodes.proto', 'agents.proto'], {
      includeDirs: [import.meta.dirname],
      longs: Number,
      enums: String,
      defaults: true,
      oneofs: true,
    });
    // The generated types describe exactly this package; the loader itself cannot know them.
    const tree = loadPackageDefinition(definition) as GrpcObject & AgentsPackage & NodesPackage;
    loaded = tree.blockwire.control.v1;
  }
  return loaded;
}
