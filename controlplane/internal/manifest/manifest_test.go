package manifest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"bailiwick/controlplane/internal/manifest"
	"bailiwick/shared/fault"
)

func TestParse_NamesFileAndLine(t *testing.T) {
	for _, c := range []struct{ name, in, reason, want string }{
		{"unknown field", "kind: Plan\nname: p\nspec:\n  products: [a]\n  colour: red\n", manifest.ReasonUnknown, "f.yaml:5: unknown field spec.colour: spec has products, rate_limit,"},
		{"unknown top field", "kind: Plan\nname: p\nstatus: x\nspec: {}\n", manifest.ReasonUnknown, `f.yaml:3: unknown field "status"`},
		{"second document", "kind: Plan\nname: p\nspec: {products: [a]}\n---\nkind: API\nname: a\nspec:\n  routes:\n    - {name: r}\n    - name: s\n      nope: 1\n", manifest.ReasonUnknown, "f.yaml:11: unknown field spec.routes[1].nope"},
		{"blank name", "kind: Plan\nname: ' '\nspec: {}\n", manifest.ReasonInvalid, "f.yaml:1: name of this Plan is missing or blank"},
		{"no name", "kind: Plan\nspec: {}\n", manifest.ReasonInvalid, "name of this Plan is missing"},
		{"unknown kind", "kind: Plans\nname: p\nspec: {}\n", manifest.ReasonInvalid, `kind "Plans" is none of Zone, Region`},
		{"no kind", "name: p\nspec: {}\n", manifest.ReasonInvalid, "kind is missing"},
		{"no spec", "kind: Plan\nname: p\n", manifest.ReasonInvalid, "spec of Plan p is missing"},
		{"null", "kind: Plan\nname: p\nspec:\n  price:\n", manifest.ReasonInvalid, "f.yaml:4: spec.price is empty"},
		{"twice", "kind: Plan\nname: p\nname: q\nspec: {}\n", manifest.ReasonInvalid, "f.yaml:3: name is written twice"},
		{"alias", "kind: Plan\nname: &a p\nspec:\n  price: *a\n", manifest.ReasonInvalid, "anchors and aliases"},
		{"list wanted", "kind: Plan\nname: p\nspec:\n  products: a\n", manifest.ReasonInvalid, "f.yaml:4: spec.products is not a list"},
		{"number wanted", "kind: Plan\nname: p\nspec:\n  rate_limit: {requests_per_second: '5'}\n", manifest.ReasonInvalid, `"5" is not a whole number`},
		{"number too big", "kind: Plan\nname: p\nspec:\n  rate_limit: {requests_per_second: 9999999999}\n", manifest.ReasonInvalid, "whole number of 32 bits"},
		{"bool as text", "kind: Plan\nname: p\nspec:\n  price: true\n", manifest.ReasonInvalid, "put it in quotes"},
		{"duration", "kind: API\nname: p\nspec:\n  health: {interval: 5}\n", manifest.ReasonInvalid, `spec.health.interval: "5" is not a duration`},
		{"scalar", "hello\n", manifest.ReasonInvalid, "the document is not a mapping"},
		{"syntax", "kind: [\n", manifest.ReasonSyntax, "f.yaml:"},
		{"10 MB", strings.Repeat("#", 10<<20), manifest.ReasonTooLarge, "at most 4 MiB"},
		{"1001 documents", strings.Repeat("kind: Plan\nname: p\nspec: {}\n---\n", 1001), manifest.ReasonTooLarge, "more than 1000 documents"},
	} {
		docs, err := manifest.Parse("f.yaml", []byte(c.in))
		if err == nil {
			t.Errorf("%s: got %d documents, want an error", c.name, len(docs))
			continue
		}
		if got := fault.ReasonOf(err); got != c.reason || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %s: %v\nwant %s and %q", c.name, got, err, c.reason, c.want)
		}
	}
}

func TestParse_ReadsWhatItWrites(t *testing.T) {
	files, err := filepath.Glob("../../../regions/catalog/templates/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("templates: %v, %d files", err, len(files))
	}
	texts := map[string]string{"everything": `
kind: API
name: orders
etag: "17"
spec:
  zone: emea
  hosts: [orders.emea.example.test]
  routes:
    - {name: all, methods: [GET, POST], timeout: 200ms, max_request_bytes: 1_000_000}
  upstreams: [{region: eu-west, url: "http://127.0.0.1:1"}]
  health: {interval: 1s}
---
# a comment alone makes no document
---
kind: Region
name: no-south
spec: {zone: emea, country: NO, control_only: true}
---
kind: LegalBasis
name: dpf
spec: {kind: dpf, expires: 2031-12-27, status: suspended}
`}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		texts[f] = string(data)
	}
	for name, text := range texts {
		docs, err := manifest.Parse(name, []byte(text))
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		var again []manifest.Document
		for _, d := range docs {
			out, err := manifest.YAML(resources(d))
			if err != nil {
				t.Fatal(err)
			}
			back, err := manifest.Parse("again", out)
			if err != nil || len(back) != 1 || !proto.Equal(back[0].Resource, d.Resource) {
				t.Errorf("%s: %s %s comes back as %v, %v", name, d.Kind.Name, d.Resource.Name, back, err)
			}
			again = append(again, back...)
		}
		if name == "everything" {
			if len(again) != 3 {
				t.Fatalf("got %d documents, want 3", len(again))
			}
			if got := docs[0].Position("spec.routes[0].timeout"); got != "everything:9" {
				t.Errorf("position: got %s, want everything:9", got)
			}
			if got := docs[1].Position("spec.jurisdiction"); got != "everything:17" {
				t.Errorf("position of an absent field: got %s, want its parent's everything:17", got)
			}
			got, want := string(manifest.JSON(docs[2].Resource)), `{"kind":"LegalBasis","name":"dpf","etag":"","spec":{"kind":"dpf","status":"suspended","expires":"2031-12-27","source":""}}`
			if got != want {
				t.Errorf("JSON: got %s\nwant %s", got, want)
			}
		}
	}
}

func TestParseKind_TakesWhatPeopleType(t *testing.T) {
	for in, want := range map[string]string{"regions": "Region", "legal-basis": "LegalBasis", "legal_bases": "LegalBasis", "LEGALBASES": "LegalBasis", "apis": "API", "policy": "Policy", "keys": "", "": ""} {
		if k, _ := manifest.ParseKind(in); k.Name != want {
			t.Errorf("%q: got %q, want %q", in, k.Name, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("kind: Plan\nname: p\nspec: {products: [a]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := manifest.Parse("f", data)
		if err != nil {
			return
		}
		for _, d := range docs {
			if _, err := manifest.YAML(resources(d)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
