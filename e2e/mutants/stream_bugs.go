package main

// Connections that last: WebSockets, and those of APIs that are tcp.

const (
	proxyPkg     = "dataplane/internal/proxy"
	tracingFile  = proxyPkg + "/tracing.go"
	liveFile     = proxyPkg + "/live.go"
	standingFile = "dataplane/internal/gate/standing.go"
	gatePkg      = "dataplane/internal/gate"
)

var streamBugs = []bug{
	{name: "streams-unjudged", breaks: "what takes back what a connection rests on ends it",
		edits:  []edit{{liveFile, "\t\tfor _, l := range list {\n\t\t\tp.judge(l)\n", "\t\tfor range list {\n"}},
		checks: []check{{proxyPkg, "TestTCP_EndsWithItsKey"}}},
	{name: "answer-outlives-its-key", breaks: "an answer that lasts ends with what its decision rested on",
		edits:  []edit{{liveFile, "\t\tif ended {\n\t\t\treturn\n\t\t}\n\t\t_, leave = c.p.live", "\t\tif true || ended {\n\t\t\treturn\n\t\t}\n\t\t_, leave = c.p.live"}},
		checks: []check{{proxyPkg, "TestStreams_EndWithWhatTheyRestOn"}}},
	{name: "trailer-says-who-asks", breaks: "nothing behind a body speaks of who asks",
		edits:  []edit{{proxyPkg + "/trailing.go", "if classOf(name) != passes {", "if false {"}},
		checks: []check{{proxyPkg, "TestTrailers_OfRequestsGoOn"}}},
	{name: "stream-outlives-its-target", breaks: "what lasts ends some time after its target left the catalog, also at a receiver of relays",
		edits:  []edit{{liveFile, "if l.target != nil && p.drained(l) {", "if l.target != nil && p.drained(l) && false {"}},
		checks: []check{{proxyPkg, "TestStreams_EndWithTheirTarget"}}},
	{name: "stream-goes-on-once-told", breaks: "nothing passes on a connection that was told to end",
		edits:  []edit{{proxyPkg + "/tab.go", "if o := t.told.Load(); o != nil {", "if o := t.told.Load(); false && o != nil {"}},
		checks: []check{{proxyPkg, "TestTab_LetsNothingPassOnceTold"}}},
	{name: "stream-outlives-the-pair", breaks: "a stream over a pair ends with it",
		edits:  []edit{{"dataplane/internal/relay/client.go", "\tfor _, f := range cut {\n\t\tf.cut()\n\t}", "\tfor _, f := range cut {\n\t\t_ = f\n\t}"}, {"dataplane/internal/relay/client.go", "\t\ts.close()\n\t\tc.cfg.Logger.Info(\"relay session closed\"", "\t\tc.cfg.Logger.Info(\"relay session closed\""}},
		checks: []check{{proxyPkg, "TestSocket_EndsWithWhatItRestsOn"}}},
	{name: "http-reaches-what-is-tcp", breaks: "an API that is tcp takes no HTTP, and HTTP is no connection of bytes",
		edits:  []edit{{gatePkg + "/gate.go", "if (v.API.TCP != nil) != r.TCP {", "if false {"}},
		checks: []check{{proxyPkg, "TestTCP_PassesBytesOfThoseWhoMay"}}},
	{name: "relayed-stream-of-any-kind", breaks: "a receiver lets a stream be opened only where its own zone's API has one",
		edits:  []edit{{"dataplane/internal/relay/server.go", "if !api.Foreign && ((stream == StreamTCP)", "if false && !api.Foreign && ((stream == StreamTCP)"}},
		checks: []check{{"dataplane/internal/relay", "TestServer_RefusesAtItsEnd"}}},
	{name: "stream-outlives-its-token", breaks: "what a token opened ends with it, and with the trust in its issuer",
		edits:  []edit{{standingFile, "if !s.shown.taken(api.Auth, unix) {", "if false {"}},
		checks: []check{{gatePkg, "TestStanding_EndsWithWhatWasShown"}}},
	{name: "stream-of-a-key-of-that-name", breaks: "a connection stands on the very key that opened it",
		edits:  []edit{{standingFile, "case key == nil || !apikey.Equal(key.Digest, s.digest) ||", "case key == nil || !apikey.Equal(s.digest, s.digest) ||"}},
		checks: []check{{gatePkg, "TestStanding_EndsWithWhatWasShown"}}},
	{name: "stream-gives-back-what-it-uses", breaks: "a unit that a connection may use is taken from its lease",
		edits:  []edit{{proxyPkg + "/tab.go", "part, rest := c.v.Ticket.Split(k)", "part, rest := c.v.Ticket.Part(k), quota.Ticket{}"}},
		checks: []check{{proxyPkg, "TestSocket_SpendsOfAQuotaWhatItTook"}}},
	{name: "page-acts-by-a-certificate", breaks: "a page of a strange origin opens no WebSocket by the browser's certificate",
		edits:  []edit{{proxyPkg + "/socket.go", "if len(origin) == 0 || !x.v.ByCertificate() ||", "if true || !x.v.ByCertificate() ||"}},
		checks: []check{{proxyPkg, "TestSocket_NoPageActsByACertificate"}}},
	{name: "stream-goes-on-uncounted", breaks: "what cannot be put into a row is the last that passes",
		edits: []edit{{proxyPkg + "/tab.go", "\t\tt.failed = !t.row(false)\n\t}\n}", "\t\tt.row(false)\n\t}\n}"},
			{proxyPkg + "/tab.go", "if t.failed = t.due(true) > 0 && !t.row(true); t.failed {", "if t.due(true) > 0 && !t.row(true) && t.failed {"}},
		checks: []check{{proxyPkg, "TestSocket_EndsWhenItCannotBeCounted"}}},
	{name: "door-forgets-what-it-broke-off", breaks: "what passed on a connection that a door breaks off is in its row when the door is shut",
		edits:  []edit{{proxyPkg + "/door.go", "\td.Shutdown(last)\n", "\t_ = last\n"}},
		checks: []check{{proxyPkg, "TestDoor_EndsWhenWhatItBrokeOffIsCounted"}}},
	{name: "gate-stays-open", breaks: "what comes while a loop works wakes nobody in Go's poller",
		edits:  []edit{{"dataplane/internal/loop/loop_linux.go", "syscall.EPOLLIN | oneshot}", "syscall.EPOLLIN | 0*oneshot}"}},
		checks: []check{{"dataplane/internal/loop", "TestLoop_IsNotDisturbed"}}},
	{name: "gate-is-not-emptied", breaks: "what is reported is taken, which shuts a loop's gate",
		edits:  []edit{{"dataplane/internal/loop/loop_linux.go", "if _, errno := poll(l.gate, e[:]); errno", "if errno := syscall.Errno(0); len(e) == 0 && errno"}},
		checks: []check{{"dataplane/internal/loop", "TestLoop_IsNotDisturbed"}}},
	{name: "gate-is-left-shut", breaks: "a gate that is left as it is stands open",
		edits:  []edit{{"dataplane/internal/loop/loop_linux.go", "\tif !l.ajar {\n", "\tif true {\n"}},
		checks: []check{{"dataplane/internal/loop", "TestLoop_LeavesItsGateOpenWhereLittleComes"}}},
	{name: "gate-stays-open-for-many", breaks: "a gate is shut again where more than one thing comes at a time",
		edits:  []edit{{"dataplane/internal/loop/loop_linux.go", "\t\tl.single = 0\n", ""}},
		checks: []check{{"dataplane/internal/loop", "TestLoop_LeavesItsGateOpenWhereLittleComes"}}},
}
