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
	{name: "reads-leave-no-record", breaks: "what a call tells of customers is on record before its answer goes out",
		edits:  []edit{{"controlplane/internal/adminapi/adminapi.go", "validation{validator}, s.recorded()),", "validation{validator}),"}},
		checks: []check{{"controlplane/internal/adminapi", "TestReads_LeaveARecordBeforeTheAnswer"}}},
	{name: "reads-shown-without-a-record", breaks: "what cannot be recorded is not shown",
		edits:  []edit{{"controlplane/internal/adminapi/readbook.go", "\t\t\treturn r.err\n", "\t\t\treturn nil\n"}},
		checks: []check{{"controlplane/internal/adminapi", "TestReadBook_AFailureShowsNothing"}}},
	{name: "exports-leave-no-record", breaks: "an export is on record before its first piece goes out",
		edits:  []edit{{"controlplane/internal/adminapi/export.go", "[]string{name}, reason)", "nil, reason)"}},
		checks: []check{{"controlplane/internal/adminapi", "TestReads_LeaveARecordBeforeTheAnswer"}}},
}
