package main

// Two processes with one identity: the clone of a disk or a machine that runs beside the original.

const (
	incarnationPkg = "dataplane/internal/incarnation"
	syncPkg        = "controlplane/internal/syncserver"
)

var twinBugs = []bug{
	{name: "ack-of-the-twin", breaks: "an acknowledgement counts for the process that gave it alone",
		edits:  []edit{{bookFile, "if p.Incarnation == somebody {", "if true {"}, {bookFile, "if process.Edge == p.Edge && b.acked(process, t, now) {", "if w := b.words[process]; process.Edge == p.Edge && w.has(place{t.Epoch, t.Barrier}) {"}},
		checks: []check{{grantPkg, "TestBook_AnAckCountsForItsProcessAlone"}, {borderPkg, "TestKeeper_TwoRunsOfAnEdgeAreTwo"}}},
	{name: "grant-of-the-twin-fits", breaks: "a receiver takes a grant from the process alone to which it was given",
		edits:  []edit{{"regions/grant/grant.go", "case g.Incarnation != peer.Incarnation:", "case false:"}},
		checks: []check{{grantPkg, "TestGrant_IsOneProcessesOwn"}, {"dataplane/internal/relay", "TestServer_AGrantIsOneProcessesOwn"}}},
	{name: "record-forgets-the-twin", breaks: "the log names every process that may still hold a grant",
		edits:  []edit{{bookFile, "if key.Edge != p.Edge {\n\t\t\tcontinue", "if key.Process != p {\n\t\t\tcontinue"}},
		checks: []check{{grantPkg, "TestBook_ANewLeaderKnowsEveryProcessOfTheLog"}, {borderPkg, "TestKeeper_TwoRunsOfAnEdgeAreTwo"}}},
	{name: "new-leader-forgets-the-twin", breaks: "a new leader reads of every process that the log names",
		edits:  []edit{{grantsFile, "for incarnation, left := range r.Others {", "for incarnation, left := range map[string]map[string]int64{} {"}},
		checks: []check{{borderPkg, "TestKeeper_TwoRunsOfAnEdgeAreTwo"}}},
	{name: "records-of-twins-cross", breaks: "two questions at once do not write over each other's record",
		edits:  []edit{{grantsFile, "{Key: model.KeyPermitted, ModIndex: mod}, {Key: model.PrefixGrant + edge, ModIndex: last.ModIndex}}", "{Key: model.KeyPermitted, ModIndex: mod}}"}, {grantsFile, "last, _ := zone.Get(", "_, _ = zone.Get("}},
		checks: []check{{borderPkg, "TestKeeper_RecordsOfTwoRunsDoNotCross"}}},
	{name: "twin-is-granted", breaks: "a second machine of one name gets nothing while the first speaks",
		edits:  []edit{{grantsFile, `elder != "" {`, `false && elder != "" {`}},
		checks: []check{{borderPkg, "TestKeeper_ASecondMachineGetsNothing"}}},
	{name: "twin-receiver-forgotten", breaks: "every process that may take relays must acknowledge",
		edits:  []edit{{bookFile, "if now.Before(l.end) && !b.acked(key.Process, t, now) {\n\t\t\topen", "if false {\n\t\t\topen"}},
		checks: []check{{grantPkg, "TestBook_EveryProcessThatMayTakeMustAcknowledge"}}},
	{name: "takes-without-leave", breaks: "a receiver that no leader has answered takes nothing",
		edits:  []edit{{"dataplane/internal/relay/server.go", "if !s.cfg.Leave.Takes(g) {\n\t\treturn in", "if false {\n\t\treturn in"}, {"dataplane/internal/relay/server.go", "!f.Stands(rules{t}) || !s.cfg.Leave.Takes(g) ||", "!f.Stands(rules{t}) ||"}},
		checks: []check{{"dataplane/internal/relay", "TestServer_TakesNothingWithoutLeave"}}},
	{name: "flights-outlive-the-leave", breaks: "what a receiver took ends with its leave",
		edits:  []edit{{"dataplane/internal/relay/server.go", " || !s.cfg.Leave.Takes(f.grant) {", " {"}},
		checks: []check{{"dataplane/internal/relay", "TestRelay_CutsWithinASecond"}}},
	{name: "leave-without-end", breaks: "the leave to take relays ends",
		edits:  []edit{{heldFile, "return now.Sub(h.take.Asked) < min(g.OfflineTTL, h.take.Lasts)", "return h.take.Lasts > 0"}},
		checks: []check{{grantPkg, "TestHeld_TakesOnlyWithLeave"}}},
	{name: "word-of-the-replaced", breaks: "what a replaced stream says is no word of the process that replaced it",
		edits:  []edit{{syncPkg + "/stream.go", "if ss.edge.conn != ss.conn {", "if false {"}},
		checks: []check{{syncPkg, "TestSubscribe_AReplacedStreamSaysNothing"}}},
	{name: "copy-buries-the-original", breaks: "a run says of no other that it has ended which may go on elsewhere",
		edits:  []edit{{incarnationPkg + "/incarnation.go", `here := boot != "" && last.Boot == boot && last.Dev == r.self.Dev && last.Inode == r.self.Inode`, `here := boot != ""`}},
		checks: []check{{incarnationPkg, "TestBegin_ACopySaysNothingOfTheOriginal"}}},
	{name: "incarnation-on-disk", breaks: "each start draws its own incarnation",
		edits:  []edit{{incarnationPkg + "/incarnation.go", "\tr.self.Dead = append(r.self.Dead, last.Dead...)\n", "\tr.self.Dead = append(r.self.Dead, last.Dead...)\n\tif last.ID != \"\" {\n\t\tr.ID, r.self.ID = last.ID, last.ID\n\t}\n"}},
		checks: []check{{incarnationPkg, "TestBegin_ACopySaysNothingOfTheOriginal"}}},
	{name: "unread-grants-are-none", breaks: "a record that a leader cannot read is the worst",
		edits:  []edit{{grantsFile, "Region: p.Edges[edge], Given: all})", "Region: p.Edges[edge]})"}},
		checks: []check{{borderPkg, "TestKeeper_AnUnreadRecordOfGrantsIsTheWorst"}}},
	{name: "left-behind-stays-open", breaks: "a zone whose copy of the catalog is of before a recovery closes what crosses zones",
		edits:  []edit{{borderFile, "k.cfg.LeftBehind == nil || !k.cfg.LeftBehind() {", "k.cfg.LeftBehind == nil || k.cfg.LeftBehind() {"}},
		checks: []check{{borderPkg, "TestKeeper_ACatalogLeftBehindClosesWhatCrossesZones"}}},
	{name: "host-leaves-two-operators", breaks: "one operator takes no host from a policy that asks two",
		edits:  []edit{{"controlplane/internal/approval/approval.go", `(old.policy == "" || left.TwoPerson) {`, `old.policy == "" && !left.TwoPerson {`}},
		checks: []check{{apiPkg, "TestApproval_EveryRoadThatOpensTakesTwo"}}},
}
