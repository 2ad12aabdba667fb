// Prints what the suite in the folder given first has for a proxy: each test's id, kind and dependencies, as JSON.
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const load = async (name) => (await import(pathToFileURL(join(process.argv[2], 'tests', name)))).default
const suites = [...(await load('index.mjs')), await load('surrogate-control.mjs')]
const tests = suites.flatMap((suite) => suite.tests).filter((test) => !test.browser_only)
const shown = tests.map(({ id, kind, depends_on }) => ({ id, kind: kind ?? 'required', needs: depends_on ?? [] }))
console.log(JSON.stringify(shown))
