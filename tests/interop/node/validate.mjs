// Validates a JSON file against the schema that its "$schema" names. Exit 0 valid, 1 invalid, 2 no schema to be had.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.INTEROP_MODULES}/x`);
const Ajv = require("ajv").default;
const addFormats = require("ajv-formats").default;

const entry = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const local = process.env.VIRTUALMLE_SERVER_SCHEMA; // a downloaded copy of the schema

async function schemaOf(url) {
  if (local) return JSON.parse(readFileSync(local, "utf-8"));
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url} answers with status ${answer.status}`);
  return answer.json();
}

const schema = await schemaOf(entry.$schema).catch((error) => {
  console.error(String(error.cause ?? error));
  process.exit(2);
});
if (schema.$id !== entry.$schema) {
  console.error(`the schema is ${schema.$id}, but the file names ${entry.$schema}`);
  process.exit(2);
}
const ajv = new Ajv({ strict: false, allErrors: true });
addFormats(ajv);
const valid = ajv.validate(schema, entry);
console.log(valid ? "valid" : ajv.errorsText());
process.exit(valid ? 0 : 1);
