package schema

import (
	"maps"
	"math"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
)

// How often one value of a request is looked at is a product: each schema that holds alternatives looks at the same value once
// for each, and again at all below it. Without a bound a document of a few lines makes a body of a few bytes take years.

// here are keywords whose schemas look at the same value, below those whose schemas look at what lies in it; of each some hold
// a schema, some a list, some a map.
var (
	here  = []string{"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"}
	below = []string{"properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames", "items", "prefixItems", "additionalItems", "unevaluatedItems", "contains", "contentSchema"}
)

type looker struct {
	d       *document
	visited map[string]float64 // most looks at a value from here on down; -1: being reckoned
	widest  float64
	longest float64 // most schemas that look at one value of one that lies above it
	again   bool    // a schema lies within itself
	texts   float64 // most instructions of patterns that one text is held against by those that look at it once
	names   float64 // likewise of patterns that the names in one object are
}

// looks bounds how deep values may lie that are held against the schema at a pointer, and says how often one is looked at.
func (d *document) looks(pointer string) (depth int, at func(depth int) float64, l *looker, err error) {
	l = &looker{d: d, visited: map[string]float64{}, widest: 1, longest: 1}
	most, err := l.most(pointer)
	if l.again {
		most = maxLooks
	}
	at = func(depth int) float64 { return min(most, l.longest*math.Pow(l.widest, float64(depth))) }
	switch {
	case err != nil:
		return 0, nil, l, err
	case !l.again && most > maxLooks:
		return 0, nil, l, d.at(pointer, "alternatives within alternatives look at one value %.0f times, more than %d: name fewer of them", most, maxLooks)
	case l.again && l.widest > 1:
		return max(3, min(maxDepth, int(math.Log(maxLooks)/math.Log(l.widest)))), at, l, nil
	}
	return maxDepth, at, l, nil
}

func (l *looker) most(pointer string) (float64, error) {
	if n, ok := l.visited[pointer]; ok {
		if n < 0 {
			l.again = true
			return 1, nil
		}
		return n, nil
	}
	l.visited[pointer] = -1
	var all []string // schemas that look at the same value, each as often as it does
	if err := l.closure(pointer, &all, nil); err != nil {
		return 0, err
	}
	texts, names := 0.0, 0.0
	for _, p := range all {
		v, _ := l.d.find(p)
		m, _ := v.(map[string]any)
		texts += instructions(m["pattern"])
		under, _ := m["patternProperties"].(map[string]any)
		for name := range under {
			names += instructions(name)
		}
	}
	l.texts, l.names = max(l.texts, texts), max(l.names, names)
	wide := 0.0
	children := map[string]bool{}
	for _, p := range all {
		held := false
		l.each(p, below, func(child string) { children[child], held = true, true })
		if held {
			wide++
		}
	}
	wide = max(wide, 1)
	l.widest, l.longest = max(l.widest, wide), max(l.longest, float64(len(all)))
	deepest := 1.0
	for _, c := range slices.Sorted(maps.Keys(children)) {
		n, err := l.most(c)
		if err != nil {
			return 0, err
		}
		deepest = max(deepest, n)
	}
	n := min(max(float64(len(all)), wide*deepest), 1e18)
	l.visited[pointer] = n
	return n, nil
}

func (l *looker) closure(pointer string, all *[]string, under []string) error {
	if slices.Contains(under, pointer) {
		return l.d.at(pointer, "a schema refers to itself without anything in between")
	}
	if len(*all) >= 1000 {
		return l.d.at(pointer, "more than 1000 schemas look at one value")
	}
	*all = append(*all, pointer)
	under = append(slices.Clip(under), pointer)
	v, _ := l.d.find(pointer)
	m, _ := v.(map[string]any)
	if ref, ok := m["$ref"].(string); ok {
		to, ok := l.d.target(ref)
		if !ok {
			return l.d.at(pointer, "$ref %q names nothing in the document", cut(ref))
		}
		if err := l.closure(to, all, under); err != nil {
			return err
		}
	}
	var err error
	l.each(pointer, here, func(p string) {
		if err == nil {
			err = l.closure(p, all, under)
		}
	})
	return err
}

// each calls do with the pointers of the schemas that lie in a schema under some keywords.
func (l *looker) each(pointer string, keywords []string, do func(string)) {
	v, _ := l.d.find(pointer)
	m, _ := v.(map[string]any)
	for _, k := range keywords {
		at := pointer + "/" + k
		switch in := m[k].(type) {
		case []any:
			for i := range in {
				do(at + "/" + strconv.Itoa(i))
			}
		case map[string]any:
			if strings.HasSuffix(k, "roperties") && !strings.HasPrefix(k, "additional") && !strings.HasPrefix(k, "unevaluated") || k == "dependentSchemas" || k == "dependencies" {
				for _, name := range slices.Sorted(maps.Keys(in)) {
					do(at + "/" + escape(name))
				}
			} else {
				do(at)
			}
		}
	}
}

// instructions are those of a pattern, none of what is no text or none: that is said elsewhere.
func instructions(of any) float64 {
	text, ok := of.(string)
	if !ok {
		return 0
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return 0
	}
	return float64(size(parsed))
}
