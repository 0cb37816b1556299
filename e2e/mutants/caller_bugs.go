package main

// Callers: the tokens and certificates that they show, their limits, and what requests are held against.

const (
	tokenPkg  = "dataplane/internal/token"
	tokenFile = tokenPkg + "/token.go"

	limitPkg    = "dataplane/internal/limit"
	windowsFile = limitPkg + "/windows.go"

	schemaPkg   = "shared/table/schema"
	openapiFile = schemaPkg + "/openapi.go"
	readingFile = schemaPkg + "/readings.go"
)

var callerBugs = []bug{
	{name: "old-token-is-verified-anew", breaks: "a token whose time is over is verified once, however often it is shown",
		edits:  []edit{{tokenFile, "\t\t\tslot.CompareAndSwap(old, k)\n", ""}},
		checks: []check{{tokenPkg, "TestVerify_TokensOutOfTimeCostLittle"}}},
	{name: "old-tokens-cost-nothing", breaks: "and many of them are paid for as forged ones",
		edits:  []edit{{tokenFile, "\t\tv.failures.add(api, from, unix)\n\t\tif old :=", "\t\tif old :="}},
		checks: []check{{tokenPkg, "TestVerify_TokensOutOfTimeCostLittle"}}},
	{name: "old-token-puts-out-a-good-one", breaks: "one whose time is over takes no place of one that holds",
		edits:  []edit{{tokenFile, "old == nil || !old.holds(unix) {", "true {"}},
		checks: []check{{tokenPkg, "TestVerify_TokensOutOfTimeCostLittle"}}},
	{name: "token-outlives-its-key", breaks: "a key that its issuer takes back ends the tokens that it signed",
		edits:  []edit{{tokenFile, "k.asked(auth, slot) && k.source.set.Load() == k.keys {", "k.asked(auth, slot) {"}},
		checks: []check{{tokenPkg, "TestVerify_TokensOutOfTimeCostLittle"}, {tokenPkg, "TestVerifier_FollowsIssuers"}}},
	{name: "keys-without-names-are-stale", breaks: "a token without a key id that no known key signed has them fetched",
		edits:  []edit{{tokenFile, "if fits == 0 || header.KeyID == \"\" {", "if fits == 0 {"}},
		checks: []check{{tokenPkg, "TestVerifier_FollowsKeysWithoutNames"}}},
	{name: "keys-of-another-type-are-tried", breaks: "the keys that a token is held against are of a type that could have signed it",
		edits:  []edit{{tokenFile, " || !signs(key.Key, header.Algorithm) {", " {"}},
		checks: []check{{tokenPkg, "TestVerify_KeysOfAnotherTypeAreNotTried"}}},
	{name: "stream-outlives-its-certificate", breaks: "what a client certificate opened ends with it",
		edits:  []edit{{proxyPkg + "/caller.go", "c.NotAfter.Unix() + 1, true", "0, true"}},
		checks: []check{{proxyPkg, "TestTCP_EndsWithItsCertificate"}}},
	{name: "stream-stands-on-what-is-over", breaks: "a connection stands on a certificate or token in its time alone",
		edits:  []edit{{gatePkg + "/caller.go", "if c.until != 0 && unix >= c.until {", "if false {"}},
		checks: []check{{gatePkg, "TestStanding_EndsWithItsCertificate"}, {gatePkg, "TestStanding_EndsWithWhatWasShown"}}},
	{name: "windows-by-their-place", breaks: "a window that a plan is given beside others leaves them what was taken of them",
		edits:  []edit{{windowsFile, "\tb.arrange(t)\n", ""}},
		checks: []check{{limitPkg, "TestEnter_AWindowKeepsItsDebt"}}},
	{name: "window-of-new-length-is-full", breaks: "a window whose length is changed begins with what was taken of it",
		edits:  []edit{{windowsFile, "\t\t\ttat[i] = gone\n", "\t\t\ttat[i] = 0\n"}},
		checks: []check{{limitPkg, "TestEnter_AWindowKeepsItsDebt"}}},
	{name: "undo-of-other-windows", breaks: "what was let in under other windows gives back to none that it has not taken from",
		edits:  []edit{{windowsFile, "if p.set != p.b.set {", "if false {"}},
		checks: []check{{limitPkg, "TestEnter_UndoKnowsItsWindows"}}},
	{name: "authorization-by-the-document", breaks: "a document's header parameters Accept, Content-Type and Authorization are passed over",
		edits:  []edit{{openapiFile, "if p.in == \"header\" && slices.Contains(passedOver, ", "if false && slices.Contains(passedOver, "}},
		checks: []check{{schemaPkg, "TestDocument_ChecksHeadersAndCookies"}}},
	{name: "cookies-unchecked", breaks: "a cookie that a document asks for is there, and good",
		edits:  []edit{{openapiFile, "\t\tsaid = cookies(r.Header(\"Cookie\"), p.name)\n", "\t\treturn nil\n"}},
		checks: []check{{schemaPkg, "TestDocument_ChecksHeadersAndCookies"}}},
	{name: "one-good-cookie-is-enough", breaks: "of cookies of one name all are good",
		edits:  []edit{{openapiFile, "for _, s := range said {\n\t\t\tif found :=", "for _, s := range said[:1] {\n\t\t\tif found :="}},
		checks: []check{{schemaPkg, "TestDocument_ChecksHeadersAndCookies"}}},
	{name: "object-by-its-own-name", breaks: "an object that a query spells by its fields is there by them",
		edits:  []edit{{openapiFile, "\t\t\tp.required = false\n", ""}},
		checks: []check{{schemaPkg, "TestDocument_ChecksHeadersAndCookies"}}},
	{name: "kinds-by-type-alone", breaks: "a parameter is read as what any schema that looks at it names",
		edits:  []edit{{readingFile, "\t\t\talso(anything, s)\n", "\t\t\t_, _ = also, s\n"}},
		checks: []check{{schemaPkg, "TestParameter_ReadsByAllThatSpeaksOfIt"}, {proxyPkg, "TestValidation_ReadsParametersByAllOfTheirSchemas"}}},
	{name: "kinds-without-those-of-values", breaks: "and as what values that are written out are",
		edits:  []edit{{readingFile, "out.named|all\n", "out.named\n"}},
		checks: []check{{schemaPkg, "TestParameter_ReadsByAllThatSpeaksOfIt"}}},
	{name: "one-reading-of-a-text", breaks: "a text that is a number passes as a text, where the number does not fit",
		edits:  []edit{{readingFile, " || also && fits(p.schema, strings.TrimSpace(said[0])) {", " || false && also {"}},
		checks: []check{{schemaPkg, "TestParameter_ReadsByAllThatSpeaksOfIt"}}},
	{name: "items-all-of-a-kind", breaks: "and an item of a list beside others",
		edits:  []edit{{readingFile, "for _, f := range p.forms {", "for _, f := range p.forms[:0] {"}},
		checks: []check{{schemaPkg, "TestParameter_ReadsByAllThatSpeaksOfIt"}}},
	{name: "each-item-by-itself", breaks: "what a list takes has a bound, however long it is",
		edits:  []edit{{readingFile, "if len(two) > maxAlone || !short {", "if false {"}},
		checks: []check{{schemaPkg, "TestParameter_TriesFewReadingsOfAList"}}},
	{name: "each-form-of-a-list", breaks: "and however many forms of it the document has",
		edits:  []edit{{readingFile, "if len(out.forms) < maxForms && ", "if "}},
		checks: []check{{schemaPkg, "TestParameter_TriesFewReadingsOfAList"}}},
	{name: "parameter-without-a-bound", breaks: "a parameter is looked at only so often",
		edits:  []edit{{readingFile, "if looks > maxAsked || strides > maxStrides {", "if false && strides > 0 {"}},
		checks: []check{{schemaPkg, "TestParameter_IsLookedAtOnlySoOften"}}},
	{name: "numbers-of-any-size", breaks: "a number is of the size that its format says",
		edits:  []edit{{schemaPkg + "/schema.go", "\tsized(c)\n", ""}},
		checks: []check{{schemaPkg, "TestFormat_KnowsTheSizesOfNumbers"}}},
}
