package husk_test

import (
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Sizes beyond which a thing is split, or listed in larger with the reason why it is not.
const (
	maxFileLines     = 500
	maxFunctionLines = 60
	maxTestLines     = 100 // of a test, whose table is part of it
	maxMethods       = 5   // of an interface
	maxFields        = 25  // of a struct
)

// larger names what may exceed a limit, as "file name": reason. A name that no longer needs it is an error.
var larger = map[string]string{}

// tooLarge reports a finding, unless larger excuses it.
func tooLarge(t *testing.T, used map[string]bool, s source, node ast.Node, name, what string, n, limit int) {
	t.Helper()
	if n <= limit {
		return
	}
	key := s.name + " " + name
	if _, ok := larger[key]; ok {
		used[key] = true
		return
	}
	line := 1
	if node != nil {
		line = s.fset.Position(node.Pos()).Line
	}
	t.Errorf("%s:%d: %s has %d %s, at most %d: split it", s.name, line, name, n, what, limit)
}

func TestSizes(t *testing.T) {
	used := map[string]bool{}
	for _, s := range tree(t) {
		if s.generated {
			continue
		}
		tooLarge(t, used, s, nil, "file", "lines", s.lines, maxFileLines)
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Body != nil {
					lines := s.fset.Position(n.Body.End()).Line - s.fset.Position(n.Pos()).Line + 1
					limit := maxFunctionLines
					if s.test && strings.HasPrefix(n.Name.Name, "Test") {
						limit = maxTestLines
					}
					tooLarge(t, used, s, n, n.Name.Name, "lines", lines, limit)
				}
			case *ast.TypeSpec:
				switch typ := n.Type.(type) {
				case *ast.InterfaceType:
					tooLarge(t, used, s, n, n.Name.Name, "methods", typ.Methods.NumFields(), maxMethods)
				case *ast.StructType:
					tooLarge(t, used, s, n, n.Name.Name, "fields", typ.Fields.NumFields(), maxFields)
				}
			}
			return true
		})
	}
	for key, why := range larger {
		if !used[key] {
			t.Errorf("larger excuses %q (%s), which is not too large", key, why)
		}
	}
}

// TestPackageDocs: a reader learns from one sentence what a package is for.
func TestPackageDocs(t *testing.T) {
	docs := map[string][]string{}
	names := map[string]string{}
	for _, s := range tree(t) {
		if s.generated || s.test && s.pkg != "." && !strings.HasPrefix(s.pkg, "test/") {
			continue
		}
		names[s.pkg] = s.file.Name.Name
		if s.file.Doc != nil {
			docs[s.pkg] = append(docs[s.pkg], s.file.Doc.Text())
		}
	}
	for pkg, name := range names {
		opening := "Package " + name + " "
		if name == "main" {
			opening = "Command " + path.Base(pkg) + " "
		}
		switch texts := docs[pkg]; {
		case len(texts) == 0:
			t.Errorf("%s has no package comment", pkg)
		case len(texts) > 1:
			t.Errorf("%s has %d package comments, want one", pkg, len(texts))
		case !strings.HasPrefix(texts[0], opening):
			t.Errorf("%s: the package comment begins with %.30q, want %q", pkg, texts[0], opening)
		case !strings.Contains(texts[0], "."):
			t.Errorf("%s: the package comment has no sentence", pkg)
		}
	}
}

// badNames say nothing of what is inside, so everything ends up there.
var badNames = regexp.MustCompile(`^(utils?|common|types|helpers?|misc|base|shared|lib)$`)

func TestPackageNames(t *testing.T) {
	for _, s := range tree(t) {
		if name := strings.TrimSuffix(s.file.Name.Name, "_test"); badNames.MatchString(name) {
			t.Errorf("%s: package %s: name it by what it holds", s.name, name)
		}
	}
}

// TestNoStoredContext: a context bounds a call, not an object.
func TestNoStoredContext(t *testing.T) {
	for _, s := range tree(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			typ, ok := n.(*ast.StructType)
			if !ok {
				return true
			}
			for _, f := range typ.Fields.List {
				if sel, ok := f.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "Context" {
					if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "context" {
						t.Errorf("%s: a struct keeps a context: make it an argument", s.fset.Position(f.Pos()))
					}
				}
			}
			return true
		})
	}
}

// unwrapped names files that may print an error without wrapping it, and why.
var unwrapped = map[string]string{
	"internal/storage/virtiofs/argv.go": "an unknown program may also have exited well: the error may be nil",
}

// TestWrappedErrors: fmt.Errorf keeps the cause of an error that it is given.
func TestWrappedErrors(t *testing.T) {
	isError := regexp.MustCompile(`^(err|[a-z]\w*Err)$`)
	for _, s := range tree(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			fun, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || fun.Sel.Name != "Errorf" {
				return true
			}
			if pkg, ok := fun.X.(*ast.Ident); !ok || pkg.Name != "fmt" {
				return true
			}
			format, ok := call.Args[0].(*ast.BasicLit)
			if !ok || strings.Contains(format.Value, "%w") {
				return true
			}
			for _, arg := range call.Args[1:] {
				if id, ok := arg.(*ast.Ident); ok && isError.MatchString(id.Name) && unwrapped[s.name] == "" {
					t.Errorf("%s: the cause %s is lost: %%w", s.fset.Position(call.Pos()), id.Name)
				}
			}
			return true
		})
	}
}

// words must be nowhere in the tree. They are put together here so that this file does not hold them.
var words = []struct {
	pattern, why string
}{
	{`/wo` + `rk/(main|shared|\.library)\b`, "a path of one machine"},
	{`/var/tmp/` + `husk-`, "a path of one machine"},
	{`(?i)\b(issue|pr|pull request)s? ` + `#?\d`, "the text stands by itself: say what it is about"},
	{`(^|[\s(])#` + `\d+\b`, "the text stands by itself: say what it is about"},
	{`(?i)\b(TO` + `DO|FIX` + `ME|X` + `XX|HA` + `CK)\b`, "unfinished work is not in the tree"},
	{`(?i)\b(deb\.debian|proxy\.golang|registry\.npmjs|sum\.golang)` + `\.org\b`, "where packages come from is the machine's to say"},
}

func TestWords(t *testing.T) {
	var patterns []*regexp.Regexp
	for _, w := range words {
		patterns = append(patterns, regexp.MustCompile(w.pattern))
	}
	for _, name := range files(t) {
		switch path.Ext(name) {
		case ".sum", ".golden", ".svg":
			continue
		}
		data, err := os.ReadFile(filepath.FromSlash(name))
		if err != nil || strings.ContainsRune(string(data[:min(len(data), 1024)]), 0) {
			continue // a link to a directory, or binary
		}
		for i, line := range strings.Split(string(data), "\n") {
			for at, pattern := range patterns {
				if found := pattern.FindString(line); found != "" {
					t.Errorf("%s:%d: %q: %s", name, i+1, strings.TrimSpace(found), words[at].why)
				}
			}
		}
	}
}
