package main

// The rules themselves: regions, which everything else asks.

const (
	setFile  = "regions/set.go"
	ruleFile = "regions/regions.go"
)

var rulesBugs = []bug{
	{name: "symmetric-pairs", breaks: "a pair permits its own direction only",
		edits:  []edit{{setFile, "out.rules[key(from, to)] = r\n\t}", "out.rules[key(from, to)] = r\n\t\tif out.rules[key(to, from)] == nil {\n\t\t\tout.rules[key(to, from)] = r\n\t\t}\n\t}"}},
		checks: []check{{"regions", "TestPermits_IsNeitherTransitiveNorSymmetric"}}},
	{name: "transitive-pairs", breaks: "a to b and b to c never give a to c",
		edits: []edit{{setFile, "\tr := p.rules[key(from, to)]\n\tif r == nil {",
			"\tr := p.rules[key(from, to)]\n\tfor via := uint32(0); r == nil && via < uint32(len(s.regions)); via++ {\n\t\tif p.rules[key(via, to)] != nil {\n\t\t\tr = p.rules[key(from, via)]\n\t\t}\n\t}\n\tif r == nil {"}},
		checks: []check{{"regions", "TestPermits_IsNeitherTransitiveNorSymmetric"}}},
	{name: "suspended-basis-stands", breaks: "suspending a legal basis closes what rests on it",
		edits:  []edit{{setFile, `case b.Status != "" && b.Status != Active:`, `case b.Status != "" && b.Status != Active && b.Status != Suspended:`}},
		checks: []check{{"regions", "TestTightening_OnlyRemoves"}, {"controlplane/internal/border", "TestKeeper_AdoptsTighteningOfTheCatalog"}}},
	{name: "expired-basis-stands", breaks: "a legal basis ends at its instant",
		edits:  []edit{{setFile, "case !b.Expires.IsZero() && !now.Before(b.Expires):", "case !b.Expires.IsZero() && !now.Before(b.Expires.AddDate(0, 0, 1)):"}},
		checks: []check{{"regions", "TestSet_Permits"}}},
	{name: "closure-needs-every-field", breaks: "a closure with a blank field closes more, not less",
		edits:  []edit{{ruleFile, `(c.To == "" || c.To == to)`, `c.To == to`}},
		checks: []check{{"regions", "TestSet_Permits"}}},
	{name: "closed-pair-is-open", breaks: "a pair written as closed is closed",
		edits:  []edit{{setFile, "closed: pair.Status == Closed", "closed: false"}},
		checks: []check{{"regions", "TestSet_Permits"}}},
	{name: "partitions-join", breaks: "no policy crosses a partition",
		edits:  []edit{{setFile, "|| a.partition() != b.partition() || seen[", "|| seen["}, {setFile, "if a.Partition != b.Partition && a.partition() != b.partition() {", "if false {"}},
		checks: []check{{"regions", "TestSet_Permits"}}},
	{name: "newest-rules-alone", breaks: "a node that knows two versions uses their intersection",
		edits:  []edit{{"regions/decision.go", "if !n.OK || home == target {", "if true {"}},
		checks: []check{{"regions", "TestIntersect_NewRegionServesAtHome"}}},
}
