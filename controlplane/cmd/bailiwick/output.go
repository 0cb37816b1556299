package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// print writes v as asked for; table writes the form for people. Only results go to stdout.
func (a *app) print(v any, table func(io.Writer)) error {
	var buf bytes.Buffer
	switch a.output {
	case "json":
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return err
		}
	case "yaml":
		data, err := json.Marshal(v)
		if err != nil {
			return err
		}
		var node yaml.Node // JSON is YAML: read as such, the order of fields stays
		if err := yaml.Unmarshal(data, &node); err != nil {
			return err
		}
		plain(&node)
		enc := yaml.NewEncoder(&buf)
		enc.SetIndent(2)
		if err := enc.Encode(&node); err != nil {
			return err
		}
	default:
		table(&buf)
		lines := strings.Split(buf.String(), "\n")
		for i := range lines {
			lines[i] = legible(lines[i])
		}
		_, err := io.WriteString(a.out, strings.Join(lines, "\n"))
		return err
	}
	_, err := a.out.Write(buf.Bytes())
	return err
}

// legible writes characters that a terminal acts on, or that turn the order of a line, as Go has them in a string:
// reasons, notes and errors are other people's text.
func legible(s string) string {
	acts := func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == utf8.RuneError
	}
	if strings.IndexFunc(s, acts) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if acts(r) {
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
}

// rows writes aligned columns under a heading.
func rows(w io.Writer, heading string, lines [][]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(heading, " ", "\t"))
	for _, l := range lines {
		for i, cell := range l {
			if l[i] = legible(cell); cell == "" {
				l[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(l, "\t"))
	}
	tw.Flush()
}

// clock is how times are written everywhere; "" if there is none.
func clock(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// quoted is a JSON string.
func quoted(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return `""` // no string fails
	}
	return strings.TrimSuffix(b.String(), "\n")
}
