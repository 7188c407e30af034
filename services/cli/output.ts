/** Where a command's answer goes. stdout carries answers only; remarks for people go to stderr. */

export interface Output {
  readonly stdout: (text: string) => void;
  readonly stderr: (text: string) => void;
}

/** The process's own streams. */
export const processOutput: Output = {
  stdout: (text) => process.stdout.write(text),
  stderr: (text) => process.stderr.write(text),
};

/** One JSON document on one line. */
export function writeJson(output: Output, document: unknown): void {
  output.stdout(`${JSON.stringify(document)}\n`);
}

/** `--json` writes the document as it came, otherwise the text for people. */
export function writeAnswer(output: Output, json: boolean, document: unknown, text: () => string): void {
  if (json) writeJson(output, document);
  else output.stdout(text());
}
