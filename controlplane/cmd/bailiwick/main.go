// Command bailiwick is the operators' CLI: a pure client of the admin API. It owns the exit codes, the output
// formats and the way from one control node to the next; it decides nothing that a server decides.
//
// It keeps no state, and a command that was interrupted may be run again: what writes carries a request id.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"bailiwick/regions/catalog"
	"bailiwick/shared/fault"
)

var version = "dev" // the linker sets it

// Exit codes: an interface of the program.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2 // also: diff found changes
	exitNotFound    = 3
	exitConflict    = 4
	exitDenied      = 5
	exitUnavailable = 6
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], world{os.Getenv, os.Stdin, screen{os.Stdout}, os.Stderr})
	stop()
	os.Exit(code)
}

// world is all that a command touches besides the network and files named to it.
type world struct {
	getenv   func(string) string
	in       io.Reader
	out, err io.Writer
}

type app struct {
	world
	admin, caFile, tokenFile, output string
	reason                           string // for reading customers' data
	timeout                          time.Duration
	started                          bool   // arguments were fine: what fails now is not a misuse
	filter                           string // of region list
	exit                             int    // set by a command that ends without an error and not with 0
}

func run(ctx context.Context, args []string, w world) int {
	a := &app{world: w}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return a.exit
	}
	fmt.Fprintln(w.err, "bailiwick: "+describe(err))
	if !a.started {
		return exitUsage
	}
	return exitCode(err)
}

// describe is the sentence and, for programs and searches, the reason.
func describe(err error) string {
	text := legible(err.Error())
	if reason := fault.ReasonOf(err); reason != "" {
		text += " (" + reason + ")"
	}
	return text
}

// codedError overrides the exit code of what it wraps.
type codedError struct {
	error
	code int
}

func (e codedError) Unwrap() error { return e.error }

func exitCode(err error) int {
	if c, ok := errors.AsType[codedError](err); ok {
		return c.code
	}
	if _, ok := fault.As(err); !ok {
		return exitFailure
	}
	switch fault.KindOf(err) {
	case fault.NotFound:
		return exitNotFound
	case fault.Conflict:
		return exitConflict
	case fault.Denied, fault.Unauthenticated:
		return exitDenied
	case fault.Unavailable:
		return exitUnavailable
	}
	return exitFailure
}

func misuse(format string, args ...any) error {
	return codedError{fmt.Errorf(format, args...), exitUsage}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "bailiwick",
		Short: "Operate a Bailiwick installation",
		Long: `Operate a Bailiwick installation through its admin API.

Environment: BAILIWICK_ADMIN (URLs of control nodes, comma separated: the next is asked when one does not
answer), BAILIWICK_CA_FILE, BAILIWICK_TOKEN_FILE, BAILIWICK_REASON (why customers' data is read: it stands in the zone's
log). Flags come before them.

Exit codes: 0 ok, 1 failure, 2 wrong usage (diff: there are changes), 3 not found, 4 conflict,
5 denied, 6 unavailable.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			if err := c.ValidateRequiredFlags(); err != nil { // cobra itself asks after this
				return err
			}
			switch a.output {
			case "table", "json", "yaml":
			case "wide":
				if c.Annotations[hasWide] == "" {
					return fmt.Errorf("output format wide is of get and key list: bailiwick %s has table, json and yaml", c.Name())
				}
			case "html":
				if c.Name() != "report" {
					return fmt.Errorf("output format html is of compliance report alone: bailiwick %s has table, json and yaml", c.Name())
				}
			case "csv":
				if c.Annotations[hasCSV] == "" {
					return fmt.Errorf("output format csv is of usage alone: bailiwick %s has table, json and yaml", c.Name())
				}
			default:
				return fmt.Errorf("output format %q is none of table, json, yaml", a.output)
			}
			a.started = true
			return nil
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	flags := root.PersistentFlags()
	flags.StringVar(&a.admin, "admin", "", "URLs of control nodes, comma separated")
	flags.StringVar(&a.caFile, "ca-file", "", "PEM file of the installation's root certificates")
	flags.StringVar(&a.tokenFile, "token-file", "", "file that holds the operator's token")
	flags.StringVarP(&a.output, "output", "o", "table", "table, json or yaml; usage has csv as well, get and key list have wide")
	flags.StringVar(&a.reason, "reason", "", "why customers' data is read, where the zone wants to know; kept for good, so name a ticket and no person")
	flags.DurationVar(&a.timeout, "timeout", 30*time.Second, "for the whole command")
	root.AddCommand(a.applyCommand(), a.diffCommand(), a.rolloutCommand(), a.historyCommand(), a.rollbackCommand(), a.getCommand(), a.describeCommand(), a.setCommand(), a.deleteCommand(), a.customerCommand(), a.keyCommand(), a.nodeCommand(), a.clusterCommand(), a.backupCommand(),
		a.joinTokenCommand(), a.usageCommand(), a.quotaCommand(), a.webhookCommand(), a.cacheCommand(), a.alertCommand(), a.borderCommand(), a.approvalCommand(), a.operatorCommand(), a.evidenceCommand(), a.auditCommand(), a.complianceCommand(), a.dnsCommand(), a.regionCommand(), a.explainCommand(), a.policyCommand(), a.closeCommand(), a.reopenCommand(), a.leadersCommand(),
		a.templateCommand(), a.versionCommand())
	return root
}

// group is a command that only holds others: called bare, it is misused.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return misuse("%s needs a command: see bailiwick %s --help", use, use)
	}}
	c.AddCommand(children...)
	return c
}

//go:embed plans.yaml
var plans string

func (a *app) templateCommand() *cobra.Command {
	names := append(catalog.Templates(), "plans")
	return &cobra.Command{Use: "template [NAME]", Short: "Print a template to start from: of a policy, or of plans", Args: cobra.MaximumNArgs(1),
		ValidArgs: names,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.print(names, func(w io.Writer) { fmt.Fprintln(w, strings.Join(names, "\n")) })
			}
			text, err := plans, error(nil)
			if args[0] != "plans" {
				text, err = catalog.Template(args[0])
			}
			if err != nil {
				return codedError{err, exitNotFound}
			}
			_, err = io.WriteString(a.out, text)
			return err
		}}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version of this program", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
			}{version, runtime.Version()}
			return a.print(v, func(w io.Writer) { fmt.Fprintf(w, "bailiwick %s %s\n", v.Version, v.Go) })
		}}
}
