package main

// wordBugs let what belongs to customers out by way of words: status texts, logs, output of crashes, and reads that leave
// no record (invariants 19 and 20).
var wordBugs = []bug{
	{name: "words-of-an-edge-go-on", breaks: "what an edge says of itself is held to its form before it goes on",
		edits:  []edit{{"controlplane/internal/syncserver/heard.go", "\tscrub(out.ProtoReflect(), &left)\n", ""}},
		checks: []check{{"controlplane/internal/syncserver", "TestHeard_TakesNoWordsOfAnEdge"}}},
	{name: "an-unknown-field-goes-on", breaks: "a field that this program does not know is not forwarded",
		edits:  []edit{{"controlplane/internal/syncserver/heard.go", "\t\tm.SetUnknown(nil)\n", ""}},
		checks: []check{{"controlplane/internal/syncserver", "TestHeard_TakesNoWordsOfAnEdge"}}},
	{name: "trouble-told-in-words", breaks: "an edge tells its control plane a value of a list, and what has none is OTHER",
		edits:  []edit{{"dataplane/trouble.go", "if !known || why == 0 {", "if !known && false {"}},
		checks: []check{{"dataplane", "TestEdge_TellsTroubleByName"}}},
}
