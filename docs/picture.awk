# Turns a terminal's text into an SVG, its colours too: make -s demo | awk -f docs/picture.awk > docs/demo.svg
# script -qec 'backhaul status' /dev/null | awk -v title='backhaul status' -f docs/picture.awk > docs/status.svg
BEGIN { size = 13; step = 18; if (title == "") title = "backhaul demo" }
{
    gsub(/&/, "\\&amp;"); gsub(/</, "\\&lt;"); gsub(/>/, "\\&gt;")
    gsub(/\r/, "")
    gsub(/\033\[1m/, "<tspan font-weight=\"bold\" fill=\"#ffffff\">")
    gsub(/\033\[31m/, "<tspan fill=\"#ff8f7a\">")
    gsub(/\033\[32m/, "<tspan fill=\"#8fdc8f\">")
    gsub(/\033\[33m/, "<tspan fill=\"#e5c07b\">")
    gsub(/\033\[0m/, "</tspan>")
    line[NR] = $0
}
END {
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"800\" height=\"%d\" role=\"img\">\n", NR * step + 30
    print "<title>" title "</title>"
    print "<rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#16181d\"/>"
    printf "<g font-family=\"monospace\" font-size=\"%d\" fill=\"#d5d8de\" xml:space=\"preserve\">\n", size
    for (n = 1; n <= NR; n++) {
        colour = ""
        if (line[n] ~ /SIGKILL|stall |noticed/) colour = " fill=\"#ff8f7a\""
        else if (line[n] ~ /by itself|exactly once|restart|lifted/) colour = " fill=\"#8fdc8f\""
        else if (n == 1 && title == "backhaul demo") colour = " fill=\"#ffffff\" font-weight=\"bold\""
        printf "<text x=\"16\" y=\"%d\"%s>%s</text>\n", n * step + 10, colour, line[n]
    }
    print "</g>\n</svg>"
}
