package main

// One bug for each test that nobody had seen fail: what it says is guarded, taken away.

const (
	http2Pkg     = "dataplane/internal/http2"
	http2Stream  = http2Pkg + "/stream.go"
	spoolPkg     = "dataplane/internal/spool"
	spoolAppend  = spoolPkg + "/append.go"
	spoolMapping = spoolPkg + "/map_linux.go"
	spoolShort   = spoolPkg + "/short.go"
	lessorPkg    = "controlplane/internal/lessor"
	lessorTerm   = lessorPkg + "/term.go"
	lessorCommit = lessorPkg + "/commit.go"
	modelPkg     = "controlplane/internal/model"
	callersFile  = modelPkg + "/callers.go"
	historyFile  = apiPkg + "/history.go"
)

var unseenBugs = []bug{
	{name: "room-for-two-in-a-window", breaks: "room that a stream was given in the connection's window no other gets",
		edits:  []edit{{http2Stream, "\t\t\tc.outWindow -= n\n\t\t\tc.promised += int(n)\n", "\t\t\tc.promised += int(n)\n"}},
		checks: []check{{http2Pkg, "TestStream_RoomIsItsOwn"}}},
	{name: "room-given-back-is-told-nobody", breaks: "who waits for room gets what another gives back",
		edits:  []edit{{http2Stream, "\tif c.call(); shut {\n\t\tc.wake()\n\t}\n", "\t_ = shut\n"}},
		checks: []check{{http2Pkg, "TestStream_RoomIsItsOwn"}}},
	{name: "room-outside-the-queue", breaks: "room that a stream was given in the connection's queue counts until it is used",
		edits:  []edit{{http2Stream, "\t\t\tc.promised += int(n)\n", ""}},
		checks: []check{{http2Pkg, "TestStream_RoomIsItsOwn"}, {http2Pkg, "TestStream_WhoHasRoomDoesNotWait"}}},
	{name: "room-waits-in-the-line", breaks: "who has room waits for nobody",
		edits:  []edit{{http2Stream, "if n <= 0 || sure <= 0 && !s.turn() {", "if n <= 0 || !s.turn() {"}},
		checks: []check{{http2Pkg, "TestStream_WhoHasRoomDoesNotWait"}}},
	{name: "room-of-who-has-left", breaks: "a stream that ends gives back the room that it has not used",
		edits:  []edit{{http2Stream, "\ts.done = true\n\ts.waive()\n", "\ts.done = true\n"}},
		checks: []check{{http2Pkg, "TestStream_RoomEnds"}}},
	{name: "room-for-ever", breaks: "to wait for room ends where sending is stopped",
		edits:  []edit{{http2Stream, "\ts.stopped = true\n\ts.wwake.wake()\n", "\ts.stopped = true\n"}},
		checks: []check{{http2Pkg, "TestStream_RoomEnds"}}},

	{name: "commit-of-the-last-segment-alone", breaks: "a group commit brings rows of every segment to the disk",
		edits:  []edit{{spoolAppend, "\t\tif g.no >= s.synced.seg() && g.no <= end.seg() {", "\t\tif g.no == end.seg() {"}},
		checks: []check{{spoolPkg, "TestSpool_ACommitLeavesNoPageToBeWritten"}}},
	{name: "commit-of-full-segments-alone", breaks: "also those of the segment that is not full",
		edits:  []edit{{spoolAppend, "\t\tif err := durable.SyncData(g.f); err != nil {", "\t\tif g.no == end.seg() {\n\t\t\tcontinue\n\t\t}\n\t\tif err := durable.SyncData(g.f); err != nil {"}},
		checks: []check{{spoolPkg, "TestSpool_ACommitLeavesNoPageToBeWritten"}}},
	{name: "commit-of-a-record-alone", breaks: "the record that rows are on the disk comes behind them",
		edits:  []edit{{spoolAppend, "\t\tif err := durable.SyncData(g.f); err != nil {", "\t\tif _, err := durable.OS().Stat(\".\"); err != nil {"}},
		checks: []check{{spoolPkg, "TestSpool_ACommitLeavesNoPageToBeWritten"}}},
	{name: "unmap-gives-up-rows", breaks: "what leaves the mapping before a commit is still the file's",
		edits:  []edit{{spoolMapping, "unix.MADV_DONTNEED", "unix.MADV_REMOVE"}},
		checks: []check{{spoolPkg, "TestSpool_KillLosesNothing"}, {spoolPkg, "TestSpool_ConcurrentAppendsAreEachCountedOnce"}}},
	{name: "rows-are-the-process-s-own", breaks: "rows survive the process",
		edits:  []edit{{spoolPkg + "/segment.go", "unix.MAP_SHARED", "unix.MAP_PRIVATE"}},
		checks: []check{{spoolPkg, "TestSpool_KillLosesNothing"}}},
	{name: "touch-wipes-out-rows", breaks: "pages are made fit for the rows to come, and not for those that are there",
		edits:  []edit{{spoolMapping, "\t\t_ = unix.Madvise(data[from:to], unix.MADV_POPULATE_WRITE) //", "\t\tclear(data[from:to]) //"}},
		checks: []check{{spoolPkg, "TestSpool_MakingPlacesReadyWipesOutNoRow"}}},

	{name: "row-leans-on-what-a-seal-took", breaks: "rows behind a seal can be read when those before it are gone",
		edits:  []edit{{spoolPkg + "/seal.go", "\ts.wholes.forget() //", "\t//"}},
		checks: []check{{spoolPkg, "TestSpool_NoRowLeansOnOneThatASealTook"}}},
	{name: "row-leans-into-the-segment-before", breaks: "a segment can be read without the one before it",
		edits:  []edit{{spoolAppend, "\ts.wholes.forget()\n", ""}},
		checks: []check{{spoolPkg, "TestShort_RowsReadAsTheyWereAppended"}}},
	{name: "row-leans-on-another-period", breaks: "usage is of the period in which it was",
		edits:  []edit{{spoolShort, "|| int64(le.Uint64(b[keyPeriod:])) != r.Period ", ""}},
		checks: []check{{spoolPkg, "TestShort_RowsReadAsTheyWereAppended"}}},
	{name: "row-leans-on-another-product", breaks: "usage is of the product that was used",
		edits:  []edit{{spoolShort, "\t\tn := int(le.Uint16(b))\n\t\tif n != len(s)", "\t\tn := int(le.Uint16(b))\n\t\tif s != r.Product && n != len(s)"}, {spoolShort, "|| string(b[2:2+n]) != s {", "|| s != r.Product && string(b[2:2+n]) != s {"}},
		checks: []check{{spoolPkg, "TestShort_RowsReadAsTheyWereAppended"}}},
	{name: "short-row-of-several-requests", breaks: "a row counts as many requests as it says",
		edits:  []edit{{spoolShort, "r.Requests == 1 && ", ""}},
		checks: []check{{spoolPkg, "TestShort_RowsReadAsTheyWereAppended"}}},
	{name: "short-row-cuts-off-a-number", breaks: "a row keeps numbers of any size",
		edits:  []edit{{spoolShort, "&& r.BytesOut <= most ", ""}},
		checks: []check{{spoolPkg, "TestShort_RowsReadAsTheyWereAppended"}}},

	{name: "who-holds-is-told-when-it-asks", breaks: "who holds what another starves for is told whatever it asks about",
		edits:  []edit{{lessorTerm, "\tfor id, until := range owing {\n\t\tif now.Before(until) {", "\tfor id, until := range owing {\n\t\tif false && now.Before(until) {"}},
		checks: []check{{lessorPkg, "TestLessor_WhoHoldsIsToldUnasked"}}},
	{name: "who-holds-is-told-once", breaks: "and again, for the first answer may be lost",
		edits:  []edit{{lessorTerm, "\t\t\tout = append(out, id) // and stays: this answer may be lost\n", "\t\t\tout = append(out, id)\n\t\t\tdelete(owing, id)\n"}},
		checks: []check{{lessorPkg, "TestLessor_WhoHoldsIsToldUnasked"}}},
	{name: "who-holds-is-told-for-ever", breaks: "until the other asks no more",
		edits:  []edit{{lessorTerm, "\t\tif now.Before(until) {\n\t\t\tout", "\t\tif true || now.Before(until) {\n\t\t\tout"}},
		checks: []check{{lessorPkg, "TestLessor_WhoHoldsIsToldUnasked"}}},
	{name: "who-has-spent-it-is-told", breaks: "and nobody who has nothing left",
		edits:  []edit{{lessorTerm, "\t\tif h.Edge == edge || !t.alive(h.Edge, now) || !t.idle(id, h) {\n", "\t\tif h.Edge == edge || !t.alive(h.Edge, now) {\n"}},
		checks: []check{{lessorPkg, "TestLessor_WhoHoldsIsToldUnasked"}}},
	{name: "who-spoke-of-it-is-told", breaks: "nor who has just spoken of that account",
		edits:  []edit{{lessorTerm, "\tfor _, s := range x.subjects { // its own answer says so\n\t\tdelete(owing, s.id())\n\t}\n", ""}},
		checks: []check{{lessorPkg, "TestLessor_WhoHoldsIsToldUnasked"}}},

	{name: "given-back-is-used-up", breaks: "a quota of which a unit has just come back is not used up",
		edits:  []edit{{lessorCommit, "\t\t\tcase acc.Available > 0:", "\t\t\tcase false && acc.Available > 0:"}},
		checks: []check{{lessorPkg, "TestExchange_GivenBackMeanwhileIsNotUsedUp"}}},

	{name: "key-in-a-header-of-others", breaks: "a key comes in a header that means nothing else",
		edits:  []edit{{callersFile, "\t\tif canonical == s || ", "\t\tif "}},
		checks: []check{{modelPkg, "TestAuth_KeyHeadersMeanNothingElse"}}},
	{name: "key-in-a-header-of-a-family", breaks: "nor belongs to a family of such",
		edits:  []edit{{callersFile, " || strings.HasSuffix(s, \"-\") && strings.HasPrefix(canonical, s) {", " {"}},
		checks: []check{{modelPkg, "TestAuth_KeyHeadersMeanNothingElse"}}},
	{name: "key-header-by-its-case", breaks: "in whatever case it is written",
		edits:  []edit{{callersFile, "\tcanonical := textproto.CanonicalMIMEHeaderKey(name)\n\tif canonical == \"X-Api-Key\"", "\t_, canonical := textproto.CanonicalMIMEHeaderKey, name\n\tif canonical == \"X-Api-Key\""}},
		checks: []check{{modelPkg, "TestAuth_KeyHeadersMeanNothingElse"}}},

	{name: "rollback-to-what-is-refused", breaks: "what would be refused today is not put in force by a rollback",
		edits:  []edit{{historyFile, "\t\t\tif err := d.rec.Validate(); err != nil {\n\t\t\t\tif req.GetWithoutRefused()", "\t\t\tif err := d.rec.Validate(); false && err != nil {\n\t\t\t\tif req.GetWithoutRefused()"}},
		checks: []check{{apiPkg, "TestRollback_LeavesOutWhatIsRefusedToday"}}},
	{name: "rollback-leaves-out-unasked", breaks: "nor left out unless the operator says so",
		edits:  []edit{{historyFile, "\t\t\t\tif req.GetWithoutRefused() {", "\t\t\t\tif true {"}},
		checks: []check{{apiPkg, "TestRollback_LeavesOutWhatIsRefusedToday"}}},
	{name: "rollback-leaves-out-unnamed", breaks: "and what is left out is named",
		edits:  []edit{{historyFile, "\t\t\t\t\tleft = append(left, fmt.Sprintf(", "\t\t\t\t\t_ = append(left, fmt.Sprintf("}},
		checks: []check{{apiPkg, "TestRollback_LeavesOutWhatIsRefusedToday"}}},

	{name: "expectation-passed-over", breaks: "what a client expects that nobody knows is refused",
		edits:  []edit{{proxyPkg + "/canonical.go", "\tif a.expects {", "\tif false {"}},
		checks: []check{{proxyPkg, "TestPath_ExpectationsThatNobodyKnows"}}},
	{name: "expectation-of-two", breaks: "also where the first of several is known",
		edits:  []edit{{proxyPkg + "/canonical.go", "\treturn len(values) > 1 || len(values) == 1 && ", "\treturn len(values) > 0 && "}},
		checks: []check{{proxyPkg, "TestPath_ExpectationsThatNobodyKnows"}}},
}
