/**
 * Writes the TypeScript types of the control protocol into `proto/build`. Run it after a change of a `.proto`
 * file and at set-up: `node proto/build.ts`. The messages themselves are loaded at run time from the `.proto`
 * files, so the options here and in `control/load.ts` must agree.
 */
import { execFileSync } from 'node:child_process';
import { readdirSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

/** Removes the old types and generates new ones. Throws when the generator fails. */
export function buildTypes(): void {
  const root = import.meta.dirname;
  const protoDir = join(root, 'control');
  const outDir = join(root, 'build');
  const manifest = createRequire(import.meta.url).resolve('@grpc/proto-loader/package.json');
  const generator = join(dirname(manifest), 'build/bin/proto-loader-gen-types.js');
  const protoFiles = readdirSync(protoDir).filter((name) => name.endsWith('.proto'));
  rmSync(outDir, { recursive: true, force: true });
  execFileSync(
    process.execPath,
    [
      generator,
      '--longs=Number',
      '--enums=String',
      '--defaults',
      '--oneofs',
      '--includeComments',
      '--grpcLib=@grpc/grpc-js',
      '--importFileExtension=.ts',
      '--inputTemplate=%sInput',
      '--outputTemplate=%s',
      `--includeDirs=${protoDir}`,
      `--outDir=${outDir}`,
      ...protoFiles,
    ],
    { cwd: protoDir, stdio: ['ignore', 'ignore', 'inherit'] },
  );
}

if (import.meta.main) buildTypes();
