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
		edits:  []edit{{"controlplane/internal/adminapi/adminapi.go", "s.rules, s.recorded(), s.paging()),", "s.rules, s.paging()),"}},
		checks: []check{{"controlplane/internal/adminapi", "TestReads_LeaveARecordBeforeTheAnswer"}}},
	{name: "reads-shown-without-a-record", breaks: "what cannot be recorded is not shown",
		edits:  []edit{{"controlplane/internal/adminapi/readbook.go", "\t\t\treturn r.err\n", "\t\t\treturn nil\n"}},
		checks: []check{{"controlplane/internal/adminapi", "TestReadBook_AFailureShowsNothing"}}},
	{name: "exports-leave-no-record", breaks: "an export is on record before its first piece goes out",
		edits:  []edit{{"controlplane/internal/adminapi/export.go", "[]string{name}, reason)", "nil, reason)"}},
		checks: []check{{"controlplane/internal/adminapi", "TestReads_LeaveARecordBeforeTheAnswer"}}},
	{name: "a-line-of-any-name", breaks: "an attribute of a log line whose name nobody put on the list is masked",
		edits:  []edit{{"shared/telemetry/logger.go", "if !names[a.Key] {", "if a.Key == \"\" {"}},
		checks: []check{{"shared/telemetry", "TestNewLogger_MasksWhatIsNotOnTheList"}}},
	{name: "http3-serves-what-is-malformed", breaks: "a malformed head over HTTP/3 is served over no protocol",
		edits:  []edit{{"dataplane/internal/http3/stream.go", "s.block.Parse(&s.Request, ended); !ok {", "s.block.Parse(&s.Request, ended); !ok && s.Request.Path == \"\" {"}},
		checks: []check{{"dataplane/internal/proxy", "TestSmuggling_ProtocolsAgree"}}},
	{name: "a-panic-tells-its-value", breaks: "of a panic the log has the place and not the value",
		edits: []edit{{"dataplane/internal/proxy/servers.go", "errorLog := log.New(withheld{cfg.Logger.Handler()}, \"\", 0)", "errorLog := log.New(slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug).Writer(), \"\", 0)"},
			{"dataplane/internal/proxy/conn.go", "\"http: panic serving %s\\ngoroutine %s\", \"a request\", debug.Stack()", "\"http: panic serving %v\\ngoroutine %s\", p, debug.Stack()"}},
		checks: []check{{"dataplane/internal/proxy", "TestServers_APanicSaysNothingOfTheRequest"}}},
}
